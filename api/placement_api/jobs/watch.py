"""Between a job's process and a database that may be away for a while."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import select, update

from placement.events import Progress
from placement_api.store.database import AWAY, Database
from placement_api.store.tables import RUNNING, JobRow

LOOK_S = 0.4  # how often the database is asked whether the job is still wanted
PAUSE_S = 1.0
T = TypeVar("T")
log = logging.getLogger("placement.service")


@dataclass(slots=True, kw_only=True)
class Watch:
    """Progress one way, the wish to stop the other. While the database is away the job goes on.

    attempt   which beginning of the job this is: after another one, elsewhere, this one is not wanted
    told_here True once it was cancelled through this process
    """

    database: Database
    job: str
    attempt: int
    told_here: Callable[[], bool]
    stage: str = ""
    looked: float = 0.0

    def stop(self) -> bool:
        if self.told_here():
            return True
        now = time.monotonic()
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
        told: dict[str, Any] = {"stage": event.stage, "done": event.done, "total": event.total}
        if event.stage != self.stage:
            told["stage_started"] = time.time()
        try:
            with self.database.session() as session:
                session.execute(update(JobRow).where(JobRow.id == self.job, *self._mine()).values(**told))
        except AWAY:
            return
        self.stage = event.stage

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
