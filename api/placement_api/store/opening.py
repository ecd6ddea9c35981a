"""The files of these settings: of this machine, or of a bucket."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import select

from placement_api.settings import Settings
from placement_api.store.bucket import BucketFiles
from placement_api.store.database import Database
from placement_api.store.files import Files, LocalFiles
from placement_api.store.s3 import Buckets, Place
from placement_api.store.tables import RUNNING, JobRow
from placement_api.store.traces import FOLDER


def open_files(settings: Settings, pinned: Callable[[], set[str]] = set) -> Files:
    """`pinned` are keys that jobs read now. Raises OptionError."""
    if not settings.blobs:
        return LocalFiles(root=settings.data)
    return BucketFiles(
        place=Place.parse(settings.blobs),
        buckets=Buckets(),
        cache=settings.data / "cache",
        most_bytes=settings.cache_bytes,
        pinned=pinned,
    )


def read_now(database: Database) -> set[str]:
    """Keys of the traces of running jobs."""
    with database.reading() as session:
        running = session.scalars(select(JobRow.request).where(JobRow.state == RUNNING))
        return {FOLDER + name for request in running for name in request["traces"]}
