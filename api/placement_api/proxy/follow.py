"""The files while requests come: looked at again and again, swapped in where they are sound."""

from __future__ import annotations

import asyncio
import gc
import logging
import signal

import numpy as np

from placement.errors import PlacementError
from placement_api.proxy.asked import Asked
from placement_api.proxy.homes import Homes
from placement_api.proxy.metrics import Metrics
from placement_api.proxy.tables import Files
from placement_api.proxy.tokens import Tokens

LOOK_S = 2.0  # between looks whether the files have changed

logger = logging.getLogger(__name__)


class Follower:
    """Swaps the files in when they change or at SIGHUP; what is not sound is refused, and the old ones stay."""

    def __init__(self, files: Files, homes: Homes, metrics: Metrics) -> None:
        self._files, self._homes, self._metrics = files, homes, metrics
        self._asked = asyncio.Event()

    async def follow(self) -> None:
        """Until cancelled."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)
        while True:
            try:
                async with asyncio.timeout(LOOK_S):
                    await self._asked.wait()
            except TimeoutError:
                pass
            if self._asked.is_set() or self._files.changed():
                self._asked.clear()
                await self._swap()

    async def _swap(self) -> None:
        try:
            self._homes.swap(await asyncio.to_thread(self._files.load))
        except (PlacementError, OSError, MemoryError) as error:
            self._metrics.swaps.labels("refused").inc()
            logger.error("the files are not taken, and the old ones stay: %s", error)
        else:
            self._metrics.swaps.labels("taken").inc()
            logger.info("the files were swapped in")


def warm(homes: Homes, tokens: Tokens | None) -> None:
    """Ask once, so that nothing is loaded or compiled when the first request comes."""
    asked = Asked(text="", ids=[], new_tokens=1, answers=1, session=None, shared=0.0, labels={})
    homes.choose(asked, np.arange(8) if tokens is None else tokens.ids("a text of a few words"))
    gc.collect()
    gc.freeze()
