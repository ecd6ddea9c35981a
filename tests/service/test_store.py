"""The database and the files: migrations, retention."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from placement_api.service import Service, make_service, open_store
from placement_api.settings import Settings
from placement_api.store.database import Database
from placement_api.store.retention import DAY_S, GRACE_S
from placement_api.store.tables import DONE, QUEUED, Base, JobRow
from tests_service import tar_of


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A store without a server: jobs are rows that nobody runs."""
    made = make_service(Settings(data=tmp_path / "data", keep_days=10, keep_bytes=100_000))
    yield made
    made.database.close()


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    url = "" if request.param == "sqlite" else request.getfixturevalue("postgres")
    opened = open_store(Settings(data=tmp_path / "data", database_url=url))
    yield opened
    opened.close()


def packed(folder: Path) -> Path:
    archive = folder.with_suffix(".tgz")
    archive.write_bytes(tar_of(folder))
    return archive


def job(service: Service, name: str, *, age_days: float, trace: str, state: str = DONE, size: int = 10) -> str:
    """A job that ended so many days ago, with a result of that size; the result's digest."""
    digest = service.blobs.put((name * size).encode())
    with service.database.session() as session:
        session.add(
            JobRow(
                id=name,
                kind="solve",
                state=state,
                request={"traces": [trace]},
                digest=name,
                created=0.0,
                finished=None if state == QUEUED else time.time() - age_days * DAY_S,
                files={"placement": digest} if state == DONE else {},
            )
        )
    return digest


def test_the_migrations_make_the_tables_that_the_code_uses(database: Database) -> None:
    """Alembic finds no difference, and a second upgrade changes nothing."""
    database.upgrade()
    with database.engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"version_table": "schema_version"})
        found = [
            change
            for change in compare_metadata(context, Base.metadata)
            if not (change[0] == "remove_table" and change[1].schema == "dbos")
        ]
    assert found == []


def test_what_is_old_goes_and_what_is_needed_stays(service: Service, tmp_path: Path, write_trace: Any) -> None:
    """After keep_days: old jobs, their files, old traces; but no trace of a queued job, and no young result."""
    rows = [service.traces.take(packed(write_trace(tmp_path / str(n), seed=n).folder), "t.tgz") for n in range(2)]
    with service.database.session() as session:
        for row in rows:
            row.used = 0.0
            session.add(row)
    old = job(service, "old", age_days=11, trace=rows[0].id)
    young = job(service, "young", age_days=9, trace=rows[0].id)
    job(service, "waits", age_days=0, trace=rows[1].id, state=QUEUED)
    service.retention.sweep(time.time() + GRACE_S + 1)
    with service.database.reading() as session:
        assert session.get(JobRow, "old") is None
        assert session.get(JobRow, "young") is not None
    assert not service.blobs.path(old).exists()
    assert service.blobs.path(young).exists()
    assert not (service.traces.folder / rows[0].id).exists()
    assert (service.traces.folder / rows[1].id).exists()


def test_beyond_the_size_the_oldest_goes_first(service: Service) -> None:
    """Until what is left fits; the newest stays."""
    digests = [job(service, f"j{n}", age_days=5 - n, trace="none", size=20_000) for n in range(5)]
    service.retention.sweep(time.time())
    assert [service.blobs.path(digest).exists() for digest in digests] == [False, False, False, True, True]


def test_what_a_killed_process_had_begun_goes_after_a_while(service: Service) -> None:
    """Uploads, traces and results that were begun an hour ago; not what somebody writes now, nor what is kept."""
    data = service.settings.data
    kept = service.blobs.put(b"kept")
    begun = [data / "uploads" / "upload-a", data / "traces" / ".incoming-b" / "run" / "trace.json"]
    begun.append(data / "blobs" / kept[:2] / f".{kept}.c.part")
    for path in begun:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    job(service, "done", age_days=0, trace="none")
    service.retention.sweep(time.time())
    assert all(path.exists() for path in begun)
    service.retention.sweep(time.time() + GRACE_S + 1)
    assert not any(path.exists() for path in begun)
    assert not (data / "traces" / ".incoming-b").exists()
    assert (data / "store.sqlite").exists()
