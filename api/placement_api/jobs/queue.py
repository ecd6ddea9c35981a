"""Jobs through DBOS: queued on disk, limited in number, begun again where a process died, ended exactly once."""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
import uuid
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetWorkflowID
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from placement.errors import PlacementError
from placement.events import Progress
from placement.version import VERSION
from placement_api.jobs import child
from placement_api.jobs.work import Task
from placement_api.problems import Problem, from_library, missing
from placement_api.settings import Settings
from placement_api.store.blobs import Blobs
from placement_api.store.database import Database
from placement_api.store.tables import CANCELLED, DONE, FAILED, OPEN, QUEUED, RUNNING, JobRow, KeyRow, TraceRow
from placement_api.store.traces import TraceFolders

QUEUE = "placement"
WORKFLOW_VERSION = "1"  # of the steps below: raise it when jobs that an earlier version began cannot go on
MOST_ATTEMPTS = 5
POLL_S = 0.1
LOOK_S = 0.4  # how often the database is asked whether another host wants a job to stop
log = logging.getLogger("placement.service")


@dataclass(slots=True, kw_only=True)
class Jobs:
    """One a process, because DBOS is."""

    settings: Settings
    database: Database
    blobs: Blobs
    traces: TraceFolders
    _stopping: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Listen to the queue, and go on with what was queued or running when the process ended."""
        global _jobs
        _jobs = self
        child.prepare()
        config = DBOSConfig(
            name="placement",
            system_database_url=self.settings.queue_url,
            executor_id=self.settings.executor,
            application_version=WORKFLOW_VERSION,
            serializer=DBOSPortableJSONSerializer(),
            log_level="ERROR",
        )
        DBOS(config=config)
        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=self.settings.max_jobs, polling_interval_sec=POLL_S)
        with self.database.reading() as session:
            queued = session.scalars(select(JobRow.id).where(JobRow.state.in_(OPEN)).order_by(JobRow.created)).all()
        for job in queued:
            self._enqueue(job)

    def stop(self) -> None:
        """What runs is begun again at the next start."""
        DBOS.destroy()

    def submit(self, kind: str, request: dict[str, Any], *, caller: str, key: str | None = None) -> JobRow:
        """The job of this request: a new one, or the one that the same request or key got before. Raises Problem."""
        digest = hashlib.sha256(json.dumps([kind, VERSION, request], sort_keys=True).encode()).hexdigest()
        try:
            job = self._find_or_add(kind, request, digest, caller, key)
        except IntegrityError:  # another request was faster
            job = self._find_or_add(kind, request, digest, caller, key)
        if job.state in OPEN:
            self._enqueue(job.id)
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
            self._stopping.add(job)
        return row

    def begin(self, job: str) -> Task | None:
        """The task of a job that is to run now; None if it was cancelled. Raises Problem."""
        with self.database.session() as session:
            row = session.get(JobRow, job)
            if row is None or row.state not in OPEN or row.cancel:
                return None
            row.state, row.started, row.attempts = RUNNING, time.time(), row.attempts + 1
            row.stage, row.done, row.total = "", 0, 0
            attempts = row.attempts
        if attempts > MOST_ATTEMPTS:
            raise Problem(500, f"the job was begun {MOST_ATTEMPTS} times and never ended", "give a smaller problem")
        return self._task(row)

    def compute(self, job: str) -> dict[str, Any]:
        """Run it; what `finish` needs to know."""
        try:
            task = self.begin(job)
            if task is None:
                return {"state": CANCELLED}
            watch = _Watch(jobs=self, job=job)
            outcome = child.run(task, stop=watch.stop, tell=watch.tell)
        except Problem as error:
            return {"state": FAILED, "error": error.body.model_dump()}
        except PlacementError as error:
            return {"state": FAILED, "error": from_library(error).body.model_dump()}
        if outcome.answer is not None:
            return {"state": DONE, **asdict(outcome.answer)}
        return {"state": CANCELLED} if outcome.error is None else {"state": FAILED, "error": outcome.error}

    def finish(self, job: str, outcome: dict[str, Any]) -> None:
        """Ends the job unless it has ended."""
        ended = {**outcome, "finished": time.time()}
        if outcome["state"] != DONE:
            ended["active_digest"] = None
        with self.database.session() as session:
            session.execute(update(JobRow).where(JobRow.id == job, JobRow.state.in_(OPEN)).values(**ended))
        with self._lock:
            self._stopping.discard(job)

    def wants_stop(self, job: str) -> bool:
        with self._lock:
            return job in self._stopping

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
                row = JobRow(
                    id=uuid.uuid4().hex,
                    kind=kind,
                    state=QUEUED,
                    request=request,
                    digest=digest,
                    active_digest=digest,
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

    def _enqueue(self, job: str) -> None:
        """The job's id is that of its workflow: however often it is queued, it is one."""
        with SetWorkflowID(job):
            DBOS.enqueue_workflow(QUEUE, run_job, job)

    def _task(self, row: JobRow) -> Task:
        with self.database.session() as session:
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
            blobs=str(self.blobs.folder),
            workers=self.settings.workers,
            placement=None if based is None else str(self._placement_path(based, other)),
        )

    def _placement_path(self, name: str, job: JobRow | None) -> Path:
        if job is None or "placement" not in job.files:
            raise missing("placement", name)
        return self.blobs.path(job.files["placement"])


@dataclass(slots=True, kw_only=True)
class _Watch:
    """Between a job's process and the database: progress one way, the wish to stop the other."""

    jobs: Jobs
    job: str
    stage: str = ""
    looked: float = 0.0

    def stop(self) -> bool:
        if self.jobs.wants_stop(self.job):
            return True
        now = time.monotonic()
        if now - self.looked < LOOK_S:
            return False
        self.looked = now
        with self.jobs.database.reading() as session:
            return session.scalars(select(JobRow.cancel).where(JobRow.id == self.job)).one_or_none() is not False

    def tell(self, event: Progress) -> None:
        told: dict[str, Any] = {"stage": event.stage, "done": event.done, "total": event.total}
        if event.stage != self.stage:
            self.stage = event.stage
            told["stage_started"] = time.time()
        with self.jobs.database.session() as session:
            session.execute(update(JobRow).where(JobRow.id == self.job, JobRow.state == RUNNING).values(**told))


_jobs: Jobs | None = None


def _running() -> Jobs:
    if _jobs is None:
        raise RuntimeError("a job runs before the service started")
    return _jobs


@DBOS.step(name="compute")
def compute(job: str) -> dict[str, Any]:
    return _running().compute(job)


@DBOS.step(name="finish", retries_allowed=True, max_attempts=20)
def finish(job: str, outcome: dict[str, Any]) -> None:
    _running().finish(job, outcome)


@DBOS.workflow(name="job", max_recovery_attempts=1000)
def run_job(job: str) -> None:
    finish(job, compute(job))
