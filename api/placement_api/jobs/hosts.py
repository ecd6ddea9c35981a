"""The processes that run jobs: each shows that it lives, and takes over what the others left."""

from __future__ import annotations

import inspect
import logging
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from dbos import DBOS
from sqlalchemy import delete, select, update

from placement.errors import OptionError
from placement_api.jobs.pace import Pace
from placement_api.store.database import AWAY, Database
from placement_api.store.tables import QUEUED, RUNNING, HostRow, JobRow

BEAT_S = 2.0
LEASE_S = 10.0  # who does not beat for so long, seen from here, is gone
LEFT = 0.0  # `seen` of a host that said that it ends
OLDEST = 100  # queued jobs that are looked at: those that should begin next
# What DBOS's own services call. What is public, resume_workflow, would begin a job again that another host has taken.
RECOVER = "_recover_pending_workflows"
ACTIVE = ("ENQUEUED", "PENDING", "DELAYED")
ENDED = ("SUCCESS", "ERROR", "CANCELLED", "MAX_RECOVERY_ATTEMPTS_EXCEEDED")
TRIM_EVERY_S, KEEP_S = 300.0, 3600.0
log = logging.getLogger("placement.service")


def check_dbos() -> None:
    """Raise OptionError if this DBOS cannot take over the jobs of hosts that are gone."""
    recover = getattr(DBOS, RECOVER, None)
    if recover is None or list(inspect.signature(recover).parameters) != ["executor_ids"]:
        raise OptionError(
            f"the installed dbos has no {RECOVER}(executor_ids), without which jobs of a host that died would never "
            "end; install dbos 3.4, which was tested"
        )


@dataclass(slots=True, kw_only=True)
class Hosts:
    """No clock is compared with another host's: gone is who did not change its row while it was watched from here.

    A host that was slow, not gone, has lost nothing: DBOS lets only the last taker of a job record how it ended.

    name     of this host: who comes back under it goes on with its jobs at once
    alone    no other host can be at this database
    queue    its name
    running  the jobs that run in this process
    enqueue  puts a job, with its turn, into the queue; again does nothing
    pace     is told at each sweep whether any job is open
    """

    database: Database
    name: str
    alone: bool
    queue: str
    running: Callable[[], set[str]]
    enqueue: Callable[[str, int], None]
    pace: Pace
    id: str = ""
    _watched: dict[str, tuple[float | None, float]] = field(default_factory=dict)
    _doubted: set[str] = field(default_factory=set)
    _swept: float = 0.0
    _trimmed: float = float("-inf")
    _answered: float = float("-inf")
    _stopped: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.id = f"{self.name[:40]}-{uuid.uuid4().hex[:12]}"

    def start(self) -> None:
        """Take over from the process that had this name; then beat and look after the others, every few seconds."""
        others = self._look()
        with self.database.reading() as session:
            same = set(session.scalars(select(HostRow.id).where(HostRow.name == self.name)))
        self._take_over({host for host in others if self.alone or host in same})
        self._answered = time.monotonic()
        threading.Thread(target=self._run, name="hosts", daemon=True).start()

    def alive(self) -> bool:
        """Jobs were looked after a moment ago."""
        return time.monotonic() - self._answered < LEASE_S

    def stop(self) -> None:
        """Leave what runs here to the others; call it when nothing is begun here any more."""
        self._stopped.set()
        with self.database.session() as session:
            session.execute(update(HostRow).where(HostRow.id == self.id).values(seen=LEFT))

    def _run(self) -> None:
        away = False
        while not self._stopped.wait(BEAT_S):
            try:
                self.sweep()
                away = False
            except AWAY as error:
                if not away:
                    log.error("the database does not answer: %s", type(error).__name__)
                away = True
            except Exception:
                log.exception("looking after jobs failed; it is tried again")

    def sweep(self) -> None:
        """Beat; take over from hosts that are gone; put jobs back that nobody runs."""
        now = time.monotonic()
        if now - self._swept > LEASE_S / 2:  # nobody was watched meanwhile
            self._watched.clear()
        self._swept = now
        seen = self._look()
        known = self._watched
        self._watched = {
            host: known[host] if host in known and known[host][0] == last else (last, now)
            for host, last in seen.items()
        }
        watched = self._watched.items()
        self._take_over({host for host, (last, since) in watched if last == LEFT or now - since >= LEASE_S})
        self.pace.swept(jobs=self._put_back())
        if now - self._trimmed >= TRIM_EVERY_S:
            self._trimmed = now
            self._trim()
        self._answered = time.monotonic()

    def _trim(self) -> None:
        """Forget what DBOS keeps of jobs that ended a while ago; what they answered is in our own rows."""
        before = datetime.fromtimestamp(time.time() - KEEP_S, UTC).isoformat()
        while True:
            ended = DBOS.list_workflows(
                completed_before=before, status=list(ENDED), limit=OLDEST, load_input=False, load_output=False
            )
            if not ended:
                return
            DBOS.delete_workflows([one.workflow_id for one in ended])

    def _look(self) -> dict[str, float | None]:
        """Beat, and when each other host that is known, or has begun a job, did so last."""
        with self.database.session() as session:
            session.merge(HostRow(id=self.id, name=self.name, seen=time.time()))
            rows = {row.id: row.seen for row in session.scalars(select(HostRow))}
        begun = DBOS.list_workflows(status="PENDING", load_input=False, load_output=False)
        hosts = {*rows, *(one.executor_id for one in begun if one.executor_id is not None)} - {self.id}
        return {host: rows.get(host) for host in hosts}

    def _take_over(self, gone: set[str]) -> None:
        if not gone:
            return
        taken = getattr(DBOS, RECOVER)(sorted(gone))
        with self.database.session() as session:
            session.execute(delete(HostRow).where(HostRow.id.in_(gone)))
        for host in gone:
            self._watched.pop(host, None)
        if taken:
            log.info("%d jobs are taken over from %s", len(taken), ", ".join(sorted(gone)))

    def _put_back(self) -> bool:
        """Jobs that are open and of which no process knows, twice in a row: a disk or a database failed at the time.

        Whether any job is open.
        """
        with self.database.reading() as session:
            found = select(JobRow.id, JobRow.turn)
            queued = found.where(JobRow.state == QUEUED).order_by(JobRow.turn, JobRow.created).limit(OLDEST)
            running = found.where(JobRow.state == RUNNING)
            turns = {job: turn for one in (running, queued) for job, turn in session.execute(one)}
        jobs = turns.keys()
        known = DBOS.list_workflows(workflow_ids=sorted(jobs), load_input=False, load_output=False) if jobs else []
        here = self.running()
        lost = {one.workflow_id for one in known if one.executor_id == self.id and one.status == "PENDING"} - here
        ended = {one.workflow_id for one in known if one.status not in ACTIVE}
        absent = jobs - {one.workflow_id for one in known}
        doubted, self._doubted = self._doubted, lost | ended | absent
        for job in sorted(doubted & self._doubted):
            log.warning("job %s is put back into the queue", job)
            if job in absent:
                self.enqueue(job, turns[job])
            elif job in lost:
                DBOS.resume_workflow(job, queue_name=self.queue)
            else:
                DBOS.rewind_workflow(job, queue_name=self.queue)
        return bool(jobs)
