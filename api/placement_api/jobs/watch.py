"""Between a job's process and a database that may be away for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import select, update

from placement.support.progress import Progress
from placement_api.store.database import AWAY, Database
from placement_api.store.tables import RUNNING, JobRow

LOOK_S = 0.4  # how often the database is asked whether the job is still wanted
TELL_S = 0.2  # how often progress is written: each time is a sync of the disk
PAUSE_S = 1.0
T = TypeVar("T")
log = logging.getLogger("placement.service")


@dataclass(slots=True, kw_only=True)
class Watch:
    """Progress one way, the wish to stop the other. While the database is away the job goes on.

    attempt   which beginning of the job this is: after another one, elsewhere, this one is not wanted
    told_here True once it was cancelled through this process
    told      columns of the progress that are not written yet
    """

    database: Database
    job: str
    attempt: int
    told_here: Callable[[], bool]
    stage: str = ""
    told: dict[str, Any] = field(default_factory=dict)
    wrote: float = 0.0
    looked: float = 0.0

    def stop(self) -> bool:
        """Asked all the while, so that this is also where progress is written."""
        if self.told_here():
            return True
        now = time.monotonic()
        if self.told and now - self.wrote >= TELL_S:
            self.wrote = now
            self._write()
        if now - self.looked < LOOK_S:
            return False
        self.looked = now
        try:
            with self.database.reading() as session:
                wanted = select(JobRow.id).where(JobRow.id == self.job, *self._mine(), JobRow.cancel.is_(False))
                return session.scalars(wanted).one_or_none() is None
        except AWAY:
            return False

    def tell(self, event: Progress) -> None:
        """Written soon; of several at a time the last, and what it was before the job ended with its end (`told`)."""
        if event.stage != self.stage:
            self.stage = event.stage
            self.told["stage_started"] = time.time()
        self.told |= {"stage": event.stage, "done": event.done, "total": event.total}
        if event.best is not None:
            self.told["best"] = event.best

    def _write(self) -> None:
        try:
            with self.database.session() as session:
                session.execute(update(JobRow).where(JobRow.id == self.job, *self._mine()).values(**self.told))
        except AWAY:
            return
        self.told = {}

    def _mine(self) -> tuple[Any, ...]:
        return JobRow.state == RUNNING, JobRow.attempts == self.attempt


def patiently(do: Callable[[], T]) -> T:
    """What `do` answers, as soon as the database does."""
    away = False
    while True:
        try:
            return do()
        except AWAY as error:
            if not away:
                log.error("a job waits for the database: %s", type(error).__name__)
            away = True
            time.sleep(PAUSE_S)
