"""Homes for a router of your own, such as a custom router of Dynamo: a prompt in, the worker of its home out."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from placement.errors import PlacementError
from placement.grouping.features import checked_prompt
from placement_api.proxy.asked import Asked
from placement_api.proxy.homes import Homes
from placement_api.proxy.tables import Files

W = TypeVar("W")

logger = logging.getLogger(__name__)


class Workers(Generic[W]):
    """Decides at which worker a request runs, and counts the tokens in flight; threads may share it.

    Args:
        map_file: The placement file that the workers run.
        grouping_file: The grouping file for this map; `refresh` takes it anew where it has changed.
        workers: Whatever names a worker to you, one for each GPU in the engine's order of ranks, or as many as divide
            the GPUs, such as one for each node.

    Raises:
        InputError: A file cannot be read or is not sound, or the two do not belong together.
        OptionError: The workers do not fit the map.
    """

    def __init__(self, map_file: str | Path, grouping_file: str | Path, workers: Sequence[W]) -> None:
        self.workers = tuple(workers)
        self._files = Files(
            map_file=Path(map_file), grouping_file=Path(grouping_file), backends=1, ranks=len(self.workers)
        )
        self._homes = Homes(self._files.load())
        self._lock = threading.Lock()

    @contextmanager
    def home(
        self,
        prompt: Sequence[int],
        *,
        new_tokens: int | None = None,
        session: str | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> Iterator[W]:
        """The worker of a request, which is in flight while the context lasts. Nothing is raised: what cannot be read
        goes to the least loaded node.

        Args:
            prompt: Ids of the tokens of its prompt.
            new_tokens: Tokens that its answer may have; None: not said.
            session: Names its conversation, which stays where its keys and values are while that is worth more.
            labels: Labels by name that training requests had too.
        """
        asked = Asked(
            text="",
            ids=[],
            new_tokens=new_tokens,
            answers=1,
            session=session,
            shared=1.0,
            labels=dict(labels or {}),
        )
        with self._lock:
            target, tokens = self._decided(asked, prompt)
        try:
            yield self.workers[target]
        finally:
            with self._lock:
                self._homes.in_flight[target] -= tokens

    def load(self) -> list[float]:
        """Tokens in flight at each node."""
        with self._lock:
            return [float(one) for one in self._homes.load_N()]

    def refresh(self) -> bool:
        """Take the files anew where one has changed; what is not sound is refused, logged, and the old ones stay.

        Returns:
            Whether other files are in use than before.
        """
        with self._lock:
            if not self._files.changed():
                return False
            try:
                self._homes.swap(self._files.load())
            except (PlacementError, OSError, MemoryError) as error:
                logger.error("the files are not taken, and the old ones stay: %s", error)
                return False
            return True

    def _decided(self, asked: Asked, prompt: Any) -> tuple[int, int]:
        """Position of the worker, and the tokens that are in flight there from now on."""
        try:
            choice = self._homes.choose(asked, checked_prompt(np.asarray(prompt)))
        except Exception as error:  # of the error its kind alone: its words may hold what was asked
            logger.error("a request goes to the least loaded node: %s", type(error).__name__)
            choice = self._homes.least_loaded()
        at = self._homes.target(choice, frozenset()) or 0
        self._homes.in_flight[at] += choice.tokens
        return at, choice.tokens
