"""Jobs through DBOS: queued on disk, limited in number, begun again where a process died, ended exactly once."""

from __future__ import annotations

import hashlib
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer, SetEnqueueOptions, SetWorkflowID
from sqlalchemy import select, update
from sqlalchemy.exc import IntegrityError

from placement import __version__
from placement_api.jobs.forks import start_forks
from placement_api.jobs.hosts import Hosts, check_dbos
from placement_api.jobs.pace import BUSY_S, Pace
from placement_api.jobs.runs import Runs
from placement_api.jobs.turns import check_room, next_turn
from placement_api.problems import Problem, missing
from placement_api.settings import Settings
from placement_api.store.database import Database, quick_commits
from placement_api.store.tables import CANCELLED, OPEN, QUEUED, RUNNING, JobRow, KeyRow

QUEUE = "placement"
WORKFLOW_VERSION = "1"  # of the steps below: raise it when jobs that an earlier version began cannot go on


@dataclass(slots=True, kw_only=True)
class Jobs:
    """One a process, because DBOS is."""

    settings: Settings
    database: Database
    runs: Runs
    _hosts: Hosts = field(init=False)
    _pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        self._hosts = Hosts(
            database=self.database,
            name=self.settings.executor,
            alone=not self.settings.database_url,
            queue=QUEUE,
            running=self.runs.running,
            enqueue=self._enqueue,
            pace=self._pace,
        )

    def start(self) -> None:
        """Listen to the queue, and go on with what was queued or running when the process ended. Raises OptionError."""
        check_dbos()
        global _runs
        _runs = self.runs
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
        self.runs.stop(job)
        return row

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


_runs: Runs | None = None


def _here() -> Runs:
    if _runs is None:
        raise RuntimeError("a job runs before the service started")
    return _runs


@DBOS.step(name="compute")
def compute(job: str) -> dict[str, Any]:
    return _here().compute(job)


@DBOS.step(name="finish")
def finish(job: str, outcome: dict[str, Any]) -> None:
    _here().finish(job, outcome)


@DBOS.workflow(name="job", max_recovery_attempts=1000)
def run_job(job: str) -> None:
    with _here().holding(job):
        finish(job, compute(job))
