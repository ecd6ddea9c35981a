"""Everything that the routes need, put together once."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

from alembic.util import CommandError
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from placement.errors import InputError
from placement.support.atomic_files import make_folder
from placement_api.jobs.queue import Jobs
from placement_api.jobs.runs import Runs
from placement_api.metrics import Metrics
from placement_api.readiness import Readiness
from placement_api.settings import Settings
from placement_api.store.blobs import Blobs
from placement_api.store.database import Database
from placement_api.store.names import Names
from placement_api.store.opening import open_files, read_now
from placement_api.store.recent import Recent
from placement_api.store.retention import Retention
from placement_api.store.s3 import Place
from placement_api.store.traces import TraceFolders
from placement_api.tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    settings: Settings
    database: Database
    blobs: Blobs
    recent: Recent
    traces: TraceFolders
    tokens: Tokens
    jobs: Jobs
    metrics: Metrics
    names: Names
    retention: Retention
    readiness: Readiness

    def start(self) -> None:
        """Go on with the jobs that were queued or running. Raises OptionError, InputError."""
        try:
            self.jobs.start()
        except SQLAlchemyError as error:
            raise _unusable("the queue of jobs", self.settings.queue_url, error) from None
        self.tokens.start(loopback=self.settings.loopback)
        # uploads are large: not in a /tmp of memory. After the start of jobs, whose sockets need short paths
        make_folder(self.settings.uploads)
        tempfile.tempdir = str(self.settings.uploads)
        self.retention.start()

    def stop(self) -> None:
        """Leave what runs to the next start, or to other hosts now."""
        self.retention.stop()
        self.jobs.stop()
        self.database.close()


def open_store(settings: Settings) -> Database:
    """The database of these settings, up to date. Raises OutputError, InputError."""
    make_folder(settings.data)
    database = Database(settings.store_url)
    try:
        database.upgrade()
    except CommandError as error:
        raise InputError(
            f"the database is of another version of placement: {error}; use that version, or another --data"
        ) from None
    except SQLAlchemyError as error:
        raise _unusable("the database", settings.store_url, error) from None
    return database


def _unusable(what: str, url: str, error: SQLAlchemyError) -> InputError:
    where = make_url(url).render_as_string(hide_password=True)
    reason = " ".join(str(getattr(error, "orig", None) or error).split())
    return InputError(f"{what} {where} cannot be used: {reason}; mend it, or give another --database-url or --data")


def make_service(settings: Settings) -> Service:
    database = open_store(settings)
    files = open_files(settings, lambda: read_now(database))
    blobs = Blobs(files=files)
    tokens = Tokens(database=database, requests_per_s=settings.limits.requests_per_s)
    traces = TraceFolders(
        folder=settings.data / "traces",
        files=files,
        allowed=settings.trace_folders,
        stores=tuple(Place.parse(url) for url in settings.trace_stores),
        limits=settings.limits,
    )
    metrics = Metrics(settings.data)
    runs = Runs(settings=settings, database=database, blobs=blobs, traces=traces, ended=metrics.job_ended)
    jobs = Jobs(settings=settings, database=database, runs=runs)
    return Service(
        settings=settings,
        database=database,
        blobs=blobs,
        recent=Recent(database=database, blobs=blobs),
        traces=traces,
        tokens=tokens,
        jobs=jobs,
        metrics=metrics,
        names=Names(database=database),
        retention=Retention(settings=settings, database=database, blobs=blobs, traces=traces),
        readiness=Readiness(database=database, blobs=blobs, alive=jobs.alive),
    )
