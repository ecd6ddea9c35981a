"""Large and hostile bodies: they are refused or read without holding anybody up."""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from typing import Annotated, Any

import httpx
import psutil
import pytest
from fastapi import FastAPI
from placement_api.archives import unpack
from placement_api.problems import Problem
from placement_api.routes.json_bodies import SMALL_BYTES, BodyRoute
from placement_api.settings import Limits
from pydantic import AfterValidator, BaseModel
from tests_service import Server, problem_of, tar_of

BODIES = {
    "numbers": b'{"top_k": 1, "counts": [[' + b"1," * 1_900_000 + b"1]]}",
    "words": b'{"top_k": 1, "counts": [[' + b'"a",' * 950_000 + b'"a"]]}',
    "rows": b'{"top_k": 1, "counts": [' + b"[]," * 1_300_000 + b"[]]}",
    "keys": b'{"top_k": 1, "counts": [[1]], ' + b",".join(b'"k%d": 1' % n for n in range(300_000)) + b"}",
}


@pytest.mark.parametrize("kind", BODIES)
def test_a_large_body_holds_nobody_up(client: httpx.Client, server: Server, kind: str) -> None:
    """Health checks are answered while the longest body that is allowed is read; it is refused, or becomes no more
    than a few faults, and memory is given back."""
    body = b'{"cluster": {"num_nodes": 2}, "counts": ' + BODIES[kind] + b"}"
    assert len(body) < 4 << 20
    before = psutil.Process(server.pid).memory_info().rss
    slowest, over = 0.0, threading.Event()

    def look() -> None:
        nonlocal slowest
        with httpx.Client(base_url=server.url) as other:
            while not over.is_set():
                began = time.monotonic()
                other.get("/healthz").raise_for_status()
                slowest = max(slowest, time.monotonic() - began)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        answer = client.post("/v1/placements", content=body, headers={"Content-Type": "application/json"})
    finally:
        over.set()
        looking.join()
    assert len(problem_of(answer, 422)["faults"]) <= 20
    assert len(answer.content) < 100_000
    assert slowest < 5.0  # a busy machine; where it is read says the test below
    assert "send at most" in answer.text
    assert psutil.Process(server.pid).memory_info().rss - before < 1 << 29


def test_a_large_body_is_read_beside_the_event_loop() -> None:
    """In another thread than the one that answers; a small one in the same, which costs less."""
    threads: list[threading.Thread] = []

    def note(value: str) -> str:
        threads.append(threading.current_thread())
        return value

    class Noted(BaseModel):
        text: Annotated[str, AfterValidator(note)]

    app = FastAPI()
    app.router.route_class = BodyRoute

    async def take(body: Any) -> int:
        threads.append(threading.current_thread())
        return len(body.text)

    take.__annotations__["body"] = Noted
    app.post("/")(take)

    async def ask() -> None:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://a") as client:
            for size in (10, 2 * SMALL_BYTES):
                assert (await client.post("/", json={"text": "a" * size})).json() == size

    asyncio.run(ask())
    assert threads[0] is threads[1] is threads[3] is not threads[2]


def test_json_that_is_not_said_to_be_json_is_told_so(client: httpx.Client) -> None:
    """The body may be right: the header is what is to be changed."""
    problem = problem_of(client.post("/v1/placements", content=b'{"traces": ["a"], "cluster": {"num_nodes": 2}}'), 422)
    assert "Content-Type" in problem["detail"] and "application/json" in problem["mend"]


def test_a_body_beyond_the_default_limit_is_refused(client: httpx.Client) -> None:
    """The 32 MB that once took 14 s and 3.3 GB: 413, at once."""
    began = time.monotonic()
    answer = client.post("/v1/placements", content=bytes(32 << 20), headers={"Content-Type": "application/json"})
    problem_of(answer, 413)
    assert time.monotonic() - began < 5


def many_files(number: int) -> bytes:
    """A tar of empty files."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as tar:
        for one in range(number):
            tar.addfile(tarfile.TarInfo(f"shard-{one:05d}.safetensors"))
    return buffer.getvalue()


def test_files_are_synced_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unpacking waits for the disk not once; only what is a trace is synced."""
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    (tmp_path / "a.tgz").write_bytes(many_files(500))
    (tmp_path / "out").mkdir()
    unpack(tmp_path / "a.tgz", tmp_path / "out", Limits())
    assert len(list((tmp_path / "out").iterdir())) == 500
    assert not synced


def test_empty_files_hold_no_upload_up(client: httpx.Client, trace: Path) -> None:
    """While archives of 5,000 empty files are taken in, another upload is done."""
    packed, good = many_files(5_000), tar_of(trace)
    answers: list[httpx.Response] = []

    def send() -> None:
        answers.append(client.post("/v1/traces", files={"file": ("a.tgz", packed)}, timeout=600))

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    assert client.post("/v1/traces", files={"file": ("t.tgz", good)}, timeout=600).status_code == 201
    took_s = time.monotonic() - began
    for thread in threads:
        thread.join()
    for answer in answers:
        problem_of(answer, 422)
    assert took_s < 90  # a busy machine; that nothing waits for the disk says the test above


def zeros(kind: str, size: int) -> bytes:
    """An archive of a file of zeros."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a.npy", bytes(size))
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        member = tarfile.TarInfo("a.npy")
        member.size = size
        tar.addfile(member, io.BytesIO(bytes(size)))
    return gzip.compress(buffer.getvalue())


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_what_becomes_much_larger_is_refused(kind: str, tmp_path: Path) -> None:
    """413 once more than a hundred times an archive's size came out, and no more is written; a little may always."""
    limits = Limits(unpack_free_bytes=1 << 20)
    for number, (size, refused) in enumerate((((1 << 20) - 200, False), (20 << 20, True))):
        (tmp_path / "a").write_bytes(zeros(kind, size))
        folder = tmp_path / f"out{number}"
        folder.mkdir()
        if not refused:
            unpack(tmp_path / "a", folder, limits)
            assert (folder / "a.npy").stat().st_size == size
            continue
        with pytest.raises(Problem) as raised:
            unpack(tmp_path / "a", folder, limits)
        assert raised.value.status == 413
        assert (folder / "a.npy").stat().st_size < 4 << 20
