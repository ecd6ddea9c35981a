"""What is kept no longer: traces and results that are old, or too many, and that no job needs."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from placement_api.settings import Settings
from placement_api.store.blobs import Blobs
from placement_api.store.database import Database
from placement_api.store.leftovers import drop_leftovers
from placement_api.store.names import kept_digests
from placement_api.store.tables import OPEN, JobRow, KeyRow, TraceRow
from placement_api.store.traces import TraceFolders

EVERY_S = 300.0
GRACE_S = 3600.0  # a file that no row names yet may belong to a job that is ending
DAY_S = 86_400.0  # or to an upload that is being taken in
AT_ONCE = 1000  # a database takes so many values in one statement, and few more
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
        freed: set[str] = set()
        if self.settings.keep_days is not None:
            self._forget_older(now - self.settings.keep_days * DAY_S)
        if self.settings.keep_bytes is not None:
            freed = self._forget_beyond(self.settings.keep_bytes)
        self._drop_files(now, freed)
        drop_leftovers(self.settings.data, now - GRACE_S)

    def _run(self) -> None:
        while not self._stopped.wait(EVERY_S):
            try:
                self.sweep(time.time())
            except Exception:  # the database may be away for a while
                log.exception("retention failed; it is tried again")

    def _forget_older(self, before: float) -> None:
        with self.database.session() as session:
            jobs = session.scalars(select(JobRow.id).where(JobRow.state.not_in(OPEN), JobRow.finished < before)).all()
            old, needed = session.scalars(select(TraceRow).where(TraceRow.used < before)), _needed(session)
            traces = [row for row in old if row.id not in needed]
            _forget(session, jobs, traces)
        self._remove(traces)

    def _forget_beyond(self, most: int) -> set[str]:
        """The digests of results that the forgotten jobs alone had."""
        size_of = {digest: entry.num_bytes for digest, entry in self.blobs.list().items()}
        with self.database.session() as session:
            ended = session.execute(select(JobRow.id, JobRow.finished, JobRow.files).where(JobRow.state.not_in(OPEN)))
            jobs = {name: (finished or 0.0, set(files.values())) for name, finished, files in ended}
            sent = list(session.scalars(select(TraceRow)))
            users = Counter(digest for _, digests in jobs.values() for digest in digests) + Counter(
                kept_digests(session)
            )
            total = sum(size_of.get(digest, 0) for digest in users)
            total += sum(row.num_bytes for row in sent if row.source != "path")
            needed = _needed(session)
            oldest: list[tuple[float, str, TraceRow | None]] = [(when, name, None) for name, (when, _) in jobs.items()]
            oldest += [(row.used, row.id, row) for row in sent if row.id not in needed and row.source != "path"]
            freed: set[str] = set()
            gone_jobs, gone_traces = [], []
            for _, name, trace in sorted(oldest, key=lambda one: one[:2]):
                if total <= most:
                    break
                if trace is not None:
                    gone_traces.append(trace)
                    total -= trace.num_bytes
                    continue
                gone_jobs.append(name)
                users.subtract(jobs[name][1])
                alone = {digest for digest in jobs[name][1] if not users[digest]}
                freed |= alone
                total -= sum(size_of.get(digest, 0) for digest in alone)
            _forget(session, gone_jobs, gone_traces)
        if total > most:
            log.warning("%d bytes are kept, more than %d: all are needed", total, most)
        self._remove(gone_traces)
        return freed

    def _remove(self, traces: Iterable[TraceRow]) -> None:
        for row in traces:
            self.traces.remove(row)

    def _drop_files(self, now: float, freed: set[str]) -> None:
        """Files that no row names: those freed now, and those that no job or upload can be about to name."""
        found, folders = self.blobs.list(), self.traces.kept()  # before the rows, which are written after the files
        with self.database.reading() as session:
            named = {digest for files in session.scalars(select(JobRow.files)) for digest in files.values()}
            named |= kept_digests(session)
            traces = set(session.scalars(select(TraceRow.id)))
            # a host that was away may have written results, and tell of them when it is back
            began = session.scalar(select(func.min(JobRow.started)).where(JobRow.state.in_(OPEN)))
        before = min(now - GRACE_S, began or now)
        for digest, entry in found.items():
            if digest not in named and entry.modified < (now if digest in freed else before):
                self.blobs.delete(digest)
        self.traces.drop({name for name, when in folders.items() if name not in traces and when < now - DAY_S})


def _forget(session: Session, jobs: Iterable[str], traces: Iterable[TraceRow]) -> None:
    names = list(jobs)
    for start in range(0, len(names), AT_ONCE):
        some = names[start : start + AT_ONCE]
        session.execute(delete(KeyRow).where(KeyRow.job.in_(some)))
        session.execute(delete(JobRow).where(JobRow.id.in_(some)))
    for row in traces:
        session.delete(row)


def _needed(session: Session) -> set[str]:
    """Traces of jobs that wait or run."""
    open_jobs = session.scalars(select(JobRow.request).where(JobRow.state.in_(OPEN)))
    return {name for request in open_jobs for name in request["traces"]}
