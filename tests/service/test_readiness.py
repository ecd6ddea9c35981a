"""/readyz says whether the service can work: soon, cheaply, and truly."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from placement_api import readiness
from placement_api.problems import Problem
from placement_api.readiness import Readiness
from placement_api.service import make_service
from placement_api.settings import Settings
from tests_service import Server, problem_of, wait_until

PAGE = 4096


@pytest.fixture
def looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Readiness]:
    """At a store of its own, anew each time."""
    monkeypatch.setattr(readiness, "WHOLE_S", 0.0)
    service = make_service(Settings(data=tmp_path / "data"))
    made = Readiness(database=service.database, blobs=service.blobs, alive=lambda: True)
    made._looks.sure_s = 0.0
    yield made
    service.database.close()


def wrong(looks: Readiness) -> str:
    """What /readyz would say; empty if nothing is wrong."""
    try:
        asyncio.run(looks.check())
    except Problem as problem:
        assert problem.status == 503
        return problem.body.detail
    return ""


def fill(data: Path, rows: int = 3000) -> None:
    """Rows for many pages, all of them in the file itself."""
    with sqlite3.connect(data / "store.sqlite") as store:
        values = [("", str(row), "d" * 64, "j" * 64, 0.0) for row in range(rows)]
        store.executemany("INSERT INTO idempotency_keys VALUES (?, ?, ?, ?, ?)", values)
        store.commit()
        store.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def damage(data: Path, page: int) -> None:
    with (data / "store.sqlite").open("r+b") as file:
        file.seek(page * PAGE)
        file.write(bytes(PAGE))


def test_a_page_that_is_damaged_shows(looks: Readiness, tmp_path: Path) -> None:
    """Whichever, though connections that are open remember what it said before."""
    fill(tmp_path / "data")
    assert wrong(looks) == ""
    whole = (tmp_path / "data" / "store.sqlite").read_bytes()
    seen = 0
    for page in range(0, len(whole) // PAGE, 7):
        damage(tmp_path / "data", page)
        seen += bool(wrong(looks))
        (tmp_path / "data" / "store.sqlite").write_bytes(whole)
    assert seen >= len(range(0, len(whole) // PAGE, 7)) - 1  # a free page may be anything
    assert wrong(looks) == ""


def test_a_disk_that_takes_no_result_shows(looks: Readiness, tmp_path: Path) -> None:
    """Rows can be read, and results not be written."""
    (tmp_path / "data" / "blobs").write_text("in the way")
    assert "NotADirectoryError" in wrong(looks)


def test_jobs_that_nobody_looks_after_show(looks: Readiness) -> None:
    looks.alive = lambda: False
    assert "nobody looks after jobs" in wrong(looks)


def test_a_frozen_store_is_told_of_soon_and_looked_at_once(looks: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask meanwhile; and when it goes on, all is well."""
    monkeypatch.setattr(readiness, "PATIENCE_S", 0.3)
    go, begun = threading.Event(), []

    def frozen(*, whole: bool) -> None:
        begun.append(whole)
        go.wait(10)

    monkeypatch.setattr(type(looks.database), "check", lambda _, whole: frozen(whole=whole))

    async def ask() -> None:
        for _ in range(2):
            began = time.monotonic()
            found = await asyncio.gather(*(looks.check() for _ in range(50)), return_exceptions=True)
            assert all(isinstance(one, Problem) and "said nothing" in one.body.detail for one in found)
            assert time.monotonic() - began < 2
        assert len(begun) == 1
        go.set()
        await asyncio.sleep(0.2)
        await looks.check()

    asyncio.run(ask())


def test_answers_are_kept_for_a_moment(looks: Readiness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand that ask at once cost one look."""
    looks._looks.sure_s = 60.0
    begun: list[bool] = []
    monkeypatch.setattr(type(looks.database), "check", lambda _, whole: begun.append(whole))

    async def ask() -> None:
        for _ in range(1000):
            await looks.check()

    asyncio.run(ask())
    assert len(begun) == 1


def test_a_service_with_a_damaged_database_is_not_ready(tmp_path: Path) -> None:
    """It starts where it can, is alive, and says 503 with the reason."""
    server = Server(data=tmp_path / "data").start()
    try:
        assert httpx.get(f"{server.url}/readyz", timeout=10).status_code == 200
        server.kill(signal.SIGTERM)
        fill(server.data)
        damage(server.data, (server.data / "store.sqlite").stat().st_size // PAGE - 5)
        server.start()
        detail = problem_of(httpx.get(f"{server.url}/readyz", timeout=10), 503)["detail"]
        assert "DatabaseError" in detail
        assert httpx.get(f"{server.url}/healthz").status_code == 200
    finally:
        server.kill()


def test_a_frozen_postgres_is_told_of_soon(database_url: str, postgres_server: Any, tmp_path: Path) -> None:
    """Every process of it is stopped: 503 within seconds, /healthz stays, and 200 when it goes on."""
    main = postgres_server.get_postmaster_info().process
    frozen: list[psutil.Process] = []
    server = Server(data=tmp_path / "data", arguments=("--database-url", database_url))
    try:
        server.start()
        assert httpx.get(f"{server.url}/readyz", timeout=10).status_code == 200
        frozen = [main, *main.children(recursive=True)]
        for process in frozen:
            process.suspend()
        time.sleep(readiness.SURE_S)
        began = time.monotonic()
        answer = httpx.get(f"{server.url}/readyz", timeout=60)
        assert time.monotonic() - began < 2 * readiness.PATIENCE_S
        assert "said nothing" in problem_of(answer, 503)["detail"]
        assert httpx.get(f"{server.url}/healthz", timeout=5).status_code == 200
    finally:
        for process in frozen:
            process.resume()
    try:
        wait_until(lambda: httpx.get(f"{server.url}/readyz", timeout=60).status_code == 200)
    finally:
        server.kill()
