"""Everything that the routes need, put together once."""

from __future__ import annotations

from dataclasses import dataclass, field

from alembic.util import CommandError
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from placement.errors import InputError
from placement.support.atomic_files import make_folder
from placement_api.jobs.queue import Jobs
from placement_api.memory import Once
from placement_api.metrics import Metrics
from placement_api.settings import Settings
from placement_api.store.blobs import Blobs
from placement_api.store.database import Database
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
    retention: Retention
    looks: Once = field(default_factory=Once)  # at whether it can work


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
        where = make_url(settings.store_url).render_as_string(hide_password=True)
        reason = " ".join(str(getattr(error, "orig", None) or error).split())
        raise InputError(
            f"the database {where} cannot be used: {reason}; mend it, or give another --database-url or --data"
        ) from None
    return database


def make_service(settings: Settings) -> Service:
    database = open_store(settings)
    files = open_files(settings, lambda: read_now(database))
    blobs = Blobs(files=files)
    tokens = Tokens(database=database, requests_per_s=settings.limits.requests_per_s)
    tokens.start(loopback=settings.loopback)
    traces = TraceFolders(
        folder=settings.data / "traces",
        files=files,
        allowed=settings.trace_folders,
        stores=tuple(Place.parse(url) for url in settings.trace_stores),
        limits=settings.limits,
    )
    return Service(
        settings=settings,
        database=database,
        blobs=blobs,
        recent=Recent(database=database, blobs=blobs),
        traces=traces,
        tokens=tokens,
        jobs=Jobs(settings=settings, database=database, blobs=blobs, traces=traces),
        metrics=Metrics(),
        retention=Retention(settings=settings, database=database, blobs=blobs, traces=traces),
    )
