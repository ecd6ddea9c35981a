"""Jobs through DBOS: queued on disk, limited in number, begun again where a process died, ended exactly once."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetEnqueueOptions, SetWorkflowID
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from placement import __version__
from placement.errors import PlacementError
from placement_api.jobs import child
from placement_api.jobs.forks import start_forks
from placement_api.jobs.hosts import Hosts, check_dbos
from placement_api.jobs.pace import BUSY_S, Pace
from placement_api.jobs.task import Task
from placement_api.jobs.turns import check_room, next_turn
from placement_api.jobs.watch import Watch, patiently
from placement_api.problems import Problem, from_library, missing
from placement_api.settings import Settings
from placement_api.store.blobs import Blobs
from placement_api.store.database import Database, quick_commits
from placement_api.store.tables import CANCELLED, DONE, FAILED, OPEN, QUEUED, RUNNING, JobRow, KeyRow, TraceRow
from placement_api.store.traces import TraceFolders

QUEUE = "placement"
WORKFLOW_VERSION = "1"  # of the steps below: raise it when jobs that an earlier version began cannot go on
MOST_ATTEMPTS = 25  # beginnings of a job that may be what kills the service
BROKEN = Problem(500, "the service failed on this job", "try again; if it stays, report it")
log = logging.getLogger("placement.service")


@dataclass(slots=True, kw_only=True)
class Jobs:
    """One a process, because DBOS is.

    ended  is told of each job that ends here: kind, state, seconds, and the error if there was one
    """

    settings: Settings
    database: Database
    blobs: Blobs
    traces: TraceFolders
    ended: Callable[[str, str, float, dict[str, Any] | None], None]
    _hosts: Hosts = field(init=False)
    _pace: Pace = field(default_factory=Pace)
    _running: Counter[str] = field(default_factory=Counter)  # a job that was put back may run beside its shadow
    _stopping: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._hosts = Hosts(
            database=self.database,
            name=self.settings.executor,
            alone=not self.settings.database_url,
            queue=QUEUE,
            running=self.running,
            enqueue=self._enqueue,
            pace=self._pace,
        )

    def start(self) -> None:
        """Listen to the queue, and go on with what was queued or running when the process ended. Raises OptionError."""
        check_dbos()
        global _jobs
        _jobs = self
        start_forks()
        quick_commits(self.settings.queue_url)
        config = DBOSConfig(
            name="placement",
            system_database_url=self.settings.queue_url,
            executor_id=self._hosts.id,
            application_version=WORKFLOW_VERSION,
            serializer=DBOSPortableJSONSerializer(),
            log_level="ERROR",
        )
        DBOS(config=config)
        DBOS.launch()
        at_once = self.settings.max_jobs
        self._pace.queue = DBOS.register_queue(QUEUE, worker_concurrency=at_once, polling_interval_sec=BUSY_S)
        self._hosts.start()

    def stop(self) -> None:
        """What runs is begun again at the next start, or by another host now."""
        DBOS.destroy()
        self._hosts.stop()

    def alive(self) -> bool:
        """Jobs are looked after, and the database answered a moment ago."""
        return self._hosts.alive()

    def submit(self, kind: str, request: dict[str, Any], *, caller: str, key: str | None = None) -> JobRow:
        """The job of this request: a new one, or the one that the same request or key got before.

        Raises:
            Problem: The key was used otherwise (422), or as many jobs of the caller wait as may (429).
        """
        digest = hashlib.sha256(json.dumps([kind, __version__, request], sort_keys=True).encode()).hexdigest()
        try:
            job = self._find_or_add(kind, request, digest, caller, key)
        except IntegrityError:  # another request was faster
            job = self._find_or_add(kind, request, digest, caller, key)
        if job.state in OPEN:
            self._enqueue(job.id, job.turn)
        return job

    def cancel(self, job: str) -> JobRow:
        """Cancelled now if it was queued; within a second if it runs. Ended jobs stay as they are. Raises Problem."""
        with self.database.session() as session:
            session.execute(
                update(JobRow)
                .where(JobRow.id == job, JobRow.state == QUEUED)
                .values(state=CANCELLED, finished=time.time(), active_digest=None, cancel=True)
            )
            session.execute(update(JobRow).where(JobRow.id == job, JobRow.state == RUNNING).values(cancel=True))
            row = session.get(JobRow, job)
        if row is None:
            raise missing("job", job)
        with self._lock:
            if job in self._running:
                self._stopping.add(job)
        return row

    def compute(self, job: str) -> dict[str, Any]:
        """Run it; what `finish` needs to know."""
        attempt, kind, began = 0, "", time.monotonic()
        try:
            attempt = patiently(lambda: self._begin(job))
            if not attempt:
                return {"state": CANCELLED}
            task = patiently(lambda: self._task(job))
            kind = task.kind
            watch = Watch(database=self.database, job=job, attempt=attempt, told_here=lambda: self.wants_stop(job))
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

    def wants_stop(self, job: str) -> bool:
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

    def _find_or_add(self, kind: str, request: dict[str, Any], digest: str, caller: str, key: str | None) -> JobRow:
        with self.database.session() as session:
            known = None if key is None else session.get(KeyRow, (caller, key))
            if known is not None and known.digest != digest:
                raise Problem(422, f"Idempotency-Key {key!r} was used with another request", "use a new key")
            if known is not None:
                row = session.get(JobRow, known.job)
                if row is not None:
                    return row
                session.delete(known)
                session.flush()
            row = session.scalars(select(JobRow).where(JobRow.active_digest == digest)).one_or_none()
            if row is None:
                check_room(session, caller, self.settings.limits.max_queued)
                row = JobRow(
                    id=uuid.uuid4().hex,
                    kind=kind,
                    state=QUEUED,
                    request=request,
                    digest=digest,
                    active_digest=digest,
                    caller=caller,
                    turn=next_turn(session, caller),
                    created=time.time(),
                    attempts=0,
                    stage="",
                    done=0,
                    total=0,
                    cancel=False,
                    files={},
                    summary={},
                )
                session.add(row)
            if key is not None:
                session.add(KeyRow(caller=caller, key=key, digest=digest, job=row.id, created=time.time()))
            return row

    def _enqueue(self, job: str, turn: int) -> None:
        """The job's id is that of its workflow: however often it is queued, it is one. Low turns begin first."""
        with SetWorkflowID(job), SetEnqueueOptions(priority=max(turn, 1)):
            DBOS.enqueue_workflow(QUEUE, run_job, job)
        self._pace.work_came()

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


_jobs: Jobs | None = None


def _running() -> Jobs:
    if _jobs is None:
        raise RuntimeError("a job runs before the service started")
    return _jobs


@DBOS.step(name="compute")
def compute(job: str) -> dict[str, Any]:
    return _running().compute(job)


@DBOS.step(name="finish")
def finish(job: str, outcome: dict[str, Any]) -> None:
    _running().finish(job, outcome)


@DBOS.workflow(name="job", max_recovery_attempts=1000)
def run_job(job: str) -> None:
    with _running().holding(job):
        finish(job, compute(job))
