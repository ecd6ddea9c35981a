"""Whether the service can work: asked often, looked at seldom, answered soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from placement.errors import PlacementError
from placement_api.memory import Fresh
from placement_api.problems import Problem, from_library
from placement_api.store.blobs import Blobs
from placement_api.store.database import Database

SURE_S = 2.0  # an answer is at most so old
PATIENCE_S = 3.0  # a database that says nothing for so long is not ready
WHOLE_S = 60.0  # how often all of a SQLite file is read
MEND = "mend the database or the disk; the log says more"


@dataclass(slots=True, kw_only=True)
class Readiness:
    """`check` belongs to the event loop; one look goes on at a time, in a thread, whoever asks.

    alive  whether jobs are looked after
    """

    database: Database
    blobs: Blobs
    alive: Callable[[], bool]
    _looks: Fresh[str] = field(default_factory=lambda: Fresh(1, SURE_S))
    _whole: float = float("-inf")  # when all of the database was found sound

    async def check(self) -> None:
        """Raises Problem (503) where rows cannot be read, results cannot be written, or nobody looks after jobs."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                wrong = await self._looks.get("ready", self._look)
        except TimeoutError:
            wrong = f"it said nothing for {PATIENCE_S:g} s"
        if wrong:
            raise Problem(503, f"the store does not answer: {wrong}", MEND, Retry_After="5")

    def _look(self) -> str:
        """What is wrong; empty if nothing is."""
        try:
            whole = time.monotonic() - self._whole >= WHOLE_S
            self.database.check(whole=whole)
            if whole:
                self._whole = time.monotonic()
            self.blobs.delete(self.blobs.put(b"ready?"))
        except Exception as error:
            self._whole = float("-inf")
            if isinstance(error, (PlacementError, Problem)):
                return (from_library(error) if isinstance(error, PlacementError) else error).body.detail
            return f"{type(error).__name__}: {getattr(error, 'orig', '')}".rstrip(": ")
        return "" if self.alive() else "nobody looks after jobs"
