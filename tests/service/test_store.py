"""The database and the files: migrations, retention."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from placement_api.jobs.forks import start_forks
from placement_api.service import Service, make_service, open_store
from placement_api.settings import Settings
from placement_api.store.database import Database
from placement_api.store.retention import DAY_S, GRACE_S
from placement_api.store.tables import DONE, QUEUED, RUNNING, Base, JobRow
from sqlalchemy import update
from tests_service import tar_of


@pytest.fixture(scope="module", autouse=True)
def prepared() -> None:
    """Uploads are read in processes that are forked with the library loaded, as in the service."""
    start_forks()


@pytest.fixture(params=["folder", "bucket"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Service]:
    """A store without a server: jobs are rows that nobody runs."""
    blobs = "" if request.param == "folder" else f"{request.getfixturevalue('bucket')}/{tmp_path.name}"
    made = make_service(Settings(data=tmp_path / "data", blobs=blobs, keep_days=10, keep_bytes=100_000))
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
                finished=None if state in (QUEUED, RUNNING) else time.time() - age_days * DAY_S,
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
    folders = [write_trace(tmp_path / str(n), seed=n).folder for n in range(2)]
    rows = [service.traces.take(packed(folder), "t.tgz").row for folder in folders]
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
    assert set(service.blobs.list()) == {young}
    assert old != young
    assert set(service.traces.kept()) == {rows[1].id}


def test_beyond_the_size_the_oldest_goes_first(service: Service) -> None:
    """Until what is left fits; the newest stays."""
    digests = [job(service, f"j{n}", age_days=5 - n, trace="none", size=20_000) for n in range(5)]
    service.retention.sweep(time.time() + 2)  # a bucket tells whole seconds
    kept = service.blobs.list()
    assert [digest in kept for digest in digests] == [False, False, False, True, True]


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


def test_a_result_that_two_jobs_have_counts_and_goes_once(service: Service) -> None:
    """It stays while the younger job does; a trace that is registered where it lies does not count."""
    shared = [job(service, name, age_days=age, trace="none", size=1) for name, age in (("a", 5), ("b", 4))]
    with service.database.session() as session:
        content = b"x" * 60_000
        digest = service.blobs.put(content)
        for name in ("a", "b"):
            row = session.get(JobRow, name)
            assert row is not None
            row.files = {**row.files, "report": digest}
    young = job(service, "c", age_days=1, trace="none", size=50_000)
    service.retention.sweep(time.time() + 2)
    assert set(service.blobs.list()) == {young}
    assert len(shared) == 2


def test_files_of_no_row_go_in_time_and_not_before(service: Service, tmp_path: Path, write_trace: Any) -> None:
    """A result that a job may be about to name (its host was away) stays; an upload that was cut off does not."""
    lost = service.blobs.put(b"lost")
    orphan = service.traces.take(packed(write_trace(tmp_path / "t").folder), "t.tgz").row.id
    (service.traces.folder / ".incoming-dead").mkdir()
    job(service, "runs", age_days=0, trace="none", state=RUNNING)
    with service.database.session() as session:
        row = session.get(JobRow, "runs")
        assert row is not None
        row.started = time.time() - 60
    later = time.time() + 2 * DAY_S
    service.retention.sweep(time.time() + GRACE_S / 2)
    assert {orphan, ".incoming-dead"} <= set(service.traces.kept())
    service.retention.sweep(later)
    assert lost in service.blobs.list()
    assert not service.traces.kept()
    with service.database.session() as session:
        session.execute(update(JobRow).values(state=DONE, finished=later))
    service.retention.sweep(later)
    assert lost not in service.blobs.list()


@pytest.mark.parametrize("command", [("serve",), ("token", "list")])
def test_a_database_that_cannot_be_used_is_told(command: tuple[str, ...], tmp_path: Path, run_cli: Any) -> None:
    """One that is not there, a file that is none, and one of a later version: one line each, without the password."""
    gone = run_cli(*command, "--data", tmp_path / "gone", "--database-url", "postgresql://u:secret@127.0.0.1:1/x")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "store.sqlite").write_text("no database" * 10)
    other = run_cli(*command, "--data", tmp_path / "other")
    database = open_store(Settings(data=tmp_path / "later"))
    with database.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE schema_version SET version_num = '9999'")
    database.close()
    later = run_cli(*command, "--data", tmp_path / "later")
    for result, why in ((gone, "refused"), (other, "not a database"), (later, "another version")):
        assert result.code == 2 and why in result.stderr
        assert len(result.stderr.splitlines()) == 1 and "secret" not in result.stderr
