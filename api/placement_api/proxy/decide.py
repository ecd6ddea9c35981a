"""From the body of a request to where it goes and what it says there; whatever fails here changes nothing."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from placement.errors import InputError
from placement_api.proxy.asked import Asked, read_asked
from placement_api.proxy.doors import Door, Headers
from placement_api.proxy.homes import Choice, Homes
from placement_api.proxy.metrics import Metrics
from placement_api.proxy.tokens import Ids, Tokens

INLINE_BYTES = 1 << 16  # a longer body is read beside the loop, so that nobody waits for it

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """What was read of a body."""

    body: Mapping[str, Any]
    asked: Asked
    ids: Ids | None


class Decider:
    """Gives requests their homes.

    Args:
        homes: Where homes are decided.
        tokens: The tokenizer; None: prompts given as text are not looked at.
        door: How the engine is told the rank; None: the choice of the backend says all.
        metrics: Where it is counted what was passed on unchanged, and why.
    """

    def __init__(self, homes: Homes, tokens: Tokens | None, door: Door | None, metrics: Metrics) -> None:
        self.homes, self.tokens, self.door, self.metrics = homes, tokens, door, metrics

    async def choose(self, body: bytes, headers: Mapping[bytes, bytes]) -> tuple[Choice, Read | None]:
        """Where a request goes; None: as it came, for nothing could be read."""
        try:
            if b"content-encoding" in headers:
                raise ValueError("packed")
            read = (
                await asyncio.to_thread(self._read, body, headers)
                if len(body) > INLINE_BYTES
                else (self._read(body, headers))
            )
            return self.homes.choose(read.asked, read.ids), read
        except (ValueError, RecursionError, OverflowError, InputError):
            self.unchanged("unread")
        except Exception as error:
            self._failed(error)
        return self.homes.least_loaded(), None

    def _read(self, body: bytes, headers: Mapping[bytes, bytes]) -> Read:
        """Raises ValueError where it is no JSON object."""
        parsed = json.loads(body)
        if not isinstance(parsed, dict):
            raise ValueError("no object")
        asked = read_asked(parsed, headers)
        ids: Ids | None = None
        if asked.ids:
            ids = np.array(asked.ids, dtype=np.int64)
        elif asked.text and self.tokens is not None:
            ids = self.tokens.ids(asked.text)
        return Read(body=parsed, asked=asked, ids=ids)

    def hand_over(
        self, body: bytes, read: Read | None, headers: Mapping[bytes, bytes], rank: int | None
    ) -> tuple[bytes, Headers]:
        """The body for the engine, and the headers to add."""
        if self.door is None or rank is None or read is None:
            return body, ()
        try:
            told = self.door.hand_over(body, read.body, headers, rank)
        except (ValueError, RecursionError):
            self.unchanged("unread")
        except Exception as error:
            self._failed(error)
        else:
            if told is not None:
                return told
            self.unchanged("asked")
        return body, ()

    def learn(self, read: Read, tokens: int | None) -> None:
        """An answer is whole.

        Args:
            read: What was read of its request.
            tokens: Tokens that the backend counted; None: it said nothing, and nothing is learned.
        """
        self.metrics.lengths.labels("nothing" if tokens is None else "usage").inc()
        if tokens is not None:
            self.homes.lengths.learn(read.asked, tokens)

    def unchanged(self, why: str) -> None:
        self.metrics.unchanged.labels(why).inc()

    def _failed(self, error: Exception) -> None:
        """Of the error its kind alone: its words may hold what was asked."""
        self.unchanged("failed")
        logger.error("a request is passed on as it came: %s", type(error).__name__)
