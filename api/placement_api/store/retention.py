"""What is kept no longer: traces and results that are old, or too many, and that no job needs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from sqlalchemy import delete, select

from placement_api.settings import Settings
from placement_api.store.blobs import Blobs
from placement_api.store.database import Database
from placement_api.store.leftovers import drop_leftovers
from placement_api.store.tables import OPEN, JobRow, KeyRow, TraceRow
from placement_api.store.traces import TraceFolders

EVERY_S = 300.0
GRACE_S = 3600.0  # a file that no row names yet may belong to a job that is ending
DAY_S = 86_400.0
log = logging.getLogger("placement.service")


@dataclass(slots=True, kw_only=True)
class Retention:
    """A thread that sweeps every few minutes."""

    settings: Settings
    database: Database
    blobs: Blobs
    traces: TraceFolders
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._run, name="retention", daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def sweep(self, now: float) -> None:
        """Forget what is older than allowed, then the oldest while what is left is too large, then files of no row."""
        if self.settings.keep_days is not None:
            self._forget(before=now - self.settings.keep_days * DAY_S)
        if self.settings.keep_bytes is not None:
            while (size := self.blobs.size() + self._trace_bytes()) > self.settings.keep_bytes:
                if not self._forget_oldest():
                    log.warning("%d bytes are kept, more than %d: all are needed", size, self.settings.keep_bytes)
                    break
                self._drop_files(now)
        self._drop_files(now - GRACE_S)
        drop_leftovers(self.settings.data, now - GRACE_S)

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_S):
            try:
                self.sweep(time.time())
            except Exception:  # the database may be away for a while
                log.exception("retention failed; it is tried again")

    def _forget(self, before: float) -> None:
        with self.database.session() as session:
            old = session.scalars(select(JobRow.id).where(JobRow.state.not_in(OPEN), JobRow.finished < before)).all()
            session.execute(delete(KeyRow).where(KeyRow.job.in_(old)))
            session.execute(delete(JobRow).where(JobRow.id.in_(old)))
            needed = self._needed(session.scalars(select(JobRow).where(JobRow.state.in_(OPEN))).all())
            traces = [
                row for row in session.scalars(select(TraceRow).where(TraceRow.used < before)) if row.id not in needed
            ]
            for row in traces:
                session.delete(row)
        for row in traces:
            self.traces.remove(row)

    def _forget_oldest(self) -> bool:
        """Forget the trace or the job that was used longest ago; False if there is none that may go."""
        with self.database.reading() as session:
            jobs = session.scalars(select(JobRow.finished).where(JobRow.state.not_in(OPEN))).all()
            needed = self._needed(session.scalars(select(JobRow).where(JobRow.state.in_(OPEN))).all())
            times = [row.used for row in session.scalars(select(TraceRow)) if row.id not in needed]
        times += [finished for finished in jobs if finished is not None]
        if times:
            self._forget(before=min(times) + 1e-6)
        return bool(times)

    def _drop_files(self, before: float) -> None:
        with self.database.reading() as session:
            named = {digest for files in session.scalars(select(JobRow.files)) for digest in files.values()}
        self.blobs.drop(named, before)

    def _trace_bytes(self) -> int:
        with self.database.reading() as session:
            return sum(session.scalars(select(TraceRow.num_bytes).where(TraceRow.source == "upload")))

    @staticmethod
    def _needed(jobs: Sequence[JobRow]) -> set[str]:
        return {name for job in jobs for name in job.request["traces"]}
