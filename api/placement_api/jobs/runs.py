"""The jobs that run in this process, each from its beginning to its end."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import update

from placement.errors import PlacementError
from placement_api.jobs import child
from placement_api.jobs.task import Task
from placement_api.jobs.watch import Watch, patiently
from placement_api.problems import Problem, from_library, missing
from placement_api.settings import Settings
from placement_api.store.blobs import Blobs
from placement_api.store.database import Database
from placement_api.store.tables import CANCELLED, DONE, FAILED, OPEN, RUNNING, JobRow, TraceRow
from placement_api.store.traces import TraceFolders

MOST_ATTEMPTS = 25  # beginnings of a job that may be what kills the service
BROKEN = Problem(500, "the service failed on this job", "try again; if it stays, report it")
log = logging.getLogger("placement.service")


@dataclass(slots=True, kw_only=True)
class Runs:
    """ended  is told of each job that ends here: kind, state, seconds, and the error if there was one"""

    settings: Settings
    database: Database
    blobs: Blobs
    traces: TraceFolders
    ended: Callable[[str, str, float, dict[str, Any] | None], None]
    _running: Counter[str] = field(default_factory=Counter)  # a job that was put back may run beside its shadow
    _stopping: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def compute(self, job: str) -> dict[str, Any]:
        """Run it; what `finish` needs to know."""
        attempt, kind, began = 0, "", time.monotonic()
        try:
            attempt = patiently(lambda: self._begin(job))
            if not attempt:
                return {"state": CANCELLED}
            task = patiently(lambda: self._task(job))
            kind = task.kind
            watch = Watch(database=self.database, job=job, attempt=attempt, told_here=lambda: self._wants_stop(job))
            outcome = child.run(task, limit_s=self.settings.limits.job_time_limit_s, stop=watch.stop, tell=watch.tell)
        except Problem as error:
            outcome = child.Outcome(error=error.body.model_dump())
        except PlacementError as error:
            outcome = child.Outcome(error=from_library(error).body.model_dump())
        except Exception:
            log.exception("job %s failed", job)
            outcome = child.Outcome(error=BROKEN.body.model_dump())
        state = DONE if outcome.answer else FAILED if outcome.error else CANCELLED
        self.ended(kind, state, time.monotonic() - began, outcome.error)
        if outcome.answer is not None:
            return {"state": DONE, "attempts": attempt, **asdict(outcome.answer), **watch.told}
        if outcome.error is not None:
            return {"state": FAILED, "attempts": attempt, "error": outcome.error}
        return {"state": CANCELLED, "attempts": attempt}

    def finish(self, job: str, outcome: dict[str, Any]) -> None:
        """Ends the job, unless it has ended or was begun again after this outcome."""
        patiently(lambda: self._finish(job, outcome))

    @contextmanager
    def holding(self, job: str) -> Iterator[None]:
        """While a job runs here."""
        with self._lock:
            self._running[job] += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= Counter([job])
                self._stopping &= self._running.keys()

    def running(self) -> set[str]:
        with self._lock:
            return set(self._running)

    def stop(self, job: str) -> None:
        """The job is not wanted any more; nothing where it does not run here."""
        with self._lock:
            if job in self._running:
                self._stopping.add(job)

    def _wants_stop(self, job: str) -> bool:
        with self._lock:
            return job in self._stopping

    def _begin(self, job: str) -> int:
        """Which beginning of the job this is, from 1; 0 if it is not wanted any more. Raises Problem."""
        with self.database.session() as session:
            row = session.get(JobRow, job, with_for_update=True)
            if row is None or row.state not in OPEN or row.cancel:
                return 0
            row.state, row.started, row.attempts = RUNNING, time.time(), row.attempts + 1
            row.stage, row.done, row.total, row.best = "", 0, 0, None
            return row.attempts

    def _finish(self, job: str, outcome: dict[str, Any]) -> None:
        ended = {**outcome, "finished": time.time()} | ({} if outcome["state"] == DONE else {"active_digest": None})
        mine = [JobRow.id == job, JobRow.state.in_(OPEN)]
        if outcome.get("attempts"):
            mine.append(JobRow.attempts == outcome["attempts"])
        with self.database.session() as session:
            session.execute(update(JobRow).where(*mine).values(**ended))

    def _task(self, job: str) -> Task:
        with self.database.session() as session:
            row = session.get_one(JobRow, job)
            if row.attempts > MOST_ATTEMPTS:
                what = f"the job was begun {MOST_ATTEMPTS} times and never ended"
                raise Problem(500, what, "give a smaller problem")
            traces = [session.get(TraceRow, name) for name in row.request["traces"]]
            for name, trace in zip(row.request["traces"], traces, strict=True):
                if trace is None:
                    raise missing("trace", name)
                trace.used = time.time()
            based = row.request.get("current") or row.request.get("placement")
            other = None if based is None else session.get(JobRow, based)
        known = [trace for trace in traces if trace is not None]
        return Task(
            kind=row.kind,
            request=row.request,
            traces=[str(self.traces.path_of(trace)) for trace in known],
            top_k=known[0].top_k,
            data=str(self.settings.data),
            blobs=self.settings.blobs,
            workers=self.settings.workers,
            placement=None if based is None else str(self._placement_path(based, other)),
        )

    def _placement_path(self, name: str, job: JobRow | None) -> Path:
        if job is None or "placement" not in job.files:
            raise missing("placement", name)
        return self.blobs.path(job.files["placement"])
