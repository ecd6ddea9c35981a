"""Full disks, and clients that go away, stall or are slow: clear answers, nothing half-written, nothing that leaks."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from placement_api.middleware import Guard
from placement_api.problems import Problem
from placement_api.settings import Limits
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from tests_service import Server, answered, problem_of, tar_of, wait_until

from placement import Cluster, Options, open_trace, solution_document, solve
from placement.documents.placement import PlacementFile

MOUNT = 'mount -t tmpfs -o size=12m tmpfs "$0" && exec "$@"'
NAMESPACES = (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount"))
WORK = {"solver": "anneal", "bound": "none", "work_limit": 3_000_000}
PAGE = 4096


class SmallDisk:
    """A server whose data folder is a file system of twelve MiB that only it sees."""

    def __init__(self, data: Path, *arguments: str) -> None:
        data.mkdir()
        possible = [one for one in NAMESPACES if not _fails([*one, "sh", "-c", MOUNT, str(data), "true"])]
        if not possible:
            pytest.skip("no small file system can be mounted here: unshare is not allowed")
        self.server = Server(data=data, arguments=arguments, prefix=(*possible[0], "sh", "-c", MOUNT, str(data)))
        self.server.start()
        self.folder = Path(f"/proc/{self.server.pid}/root{data}")

    def fill(self) -> None:
        with (self.folder / "filler").open("ab", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(PAGE))
            except OSError:
                return

    def free(self) -> None:
        (self.folder / "filler").unlink()

    def temporary(self) -> list[str]:
        """Files of uploads and results that were begun."""
        found = [*self.folder.glob("uploads/*"), *self.folder.glob("traces/.*"), *self.folder.glob("blobs/*/.*")]
        return [path.name for path in found]


def _fails(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode != 0
    except OSError:
        return True


@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_a_full_disk_is_told_and_nothing_is_lost(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path, trace: Path
) -> None:
    """Uploads and solves get 507, whoever reads is answered; a job that runs is done when there is space, or failed
    with the reason; then all works again. No file, no descriptor is left."""
    url = () if kind == "sqlite" else ("--database-url", str(request.getfixturevalue("database_url")))
    disk = SmallDisk(tmp_path / "data", *url)
    try:
        with disk.server.client() as client:
            uploaded = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))}).json()["id"]
            body = {"traces": [uploaded], "cluster": {"num_nodes": 2, "gpus_per_node": 2}, "report": False}
            kept = answered(client, "/v1/placements", body | {"options": {"solver": "linear"}})
            files = disk.server.open_files()
            job = client.post("/v1/placements", json=body | {"options": WORK}).json()["id"]
            wait_until(lambda: _solvers(disk.server) or client.get(f"/v1/jobs/{job}").json()["finished"])
            disk.fill()
            for size in (100_000, 3_000_000):
                answer = client.post("/v1/traces", files={"file": ("t.tar", bytes(size))})
                assert "full" in problem_of(answer, 507)["detail"]
            counts = {"counts": {"counts": [[1, 2]], "top_k": 1}, "cluster": {"num_nodes": 2}}
            assert "full" in problem_of(client.post("/v1/placements", json=counts), 507)["detail"]
            assert "full" in problem_of(client.get("/readyz"), 503)["detail"]
            assert client.get("/healthz").status_code == 200
            [name] = [row["id"] for row in client.get("/v1/placements").json()]
            assert client.get(f"/v1/placements/{name}").content == kept.content
            wait_until(lambda: not _solvers(disk.server), seconds=180)
            if kind == "postgres":
                wait_until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] == "failed")
            assert disk.temporary() == []
            disk.free()
            wait_until(lambda: client.get(f"/v1/jobs/{job}").json()["state"] in ("done", "failed"))
            ended = client.get(f"/v1/jobs/{job}").json()
            assert ended["state"] == "done" or (ended["error"]["status"] == 507 and "full" in ended["error"]["detail"])
            again = answered(client, "/v1/placements", body | {"options": WORK})
            alone = solve(open_trace(trace), Cluster.fit(8, num_nodes=2, gpus_per_node=2), Options(**WORK))
            assert again.content == PlacementFile.encode(solution_document(alone))
            assert client.get("/readyz").status_code == 200
            assert disk.temporary() == []
            wait_until(lambda: disk.server.open_files() <= files + 2)  # a connection to the database more or less
    finally:
        disk.server.kill()


def _solvers(server: Server) -> list[psutil.Process]:
    """What the server of forks has forked."""
    children = psutil.Process(server.pid).children()
    return [job for child in children for job in child.children()]


def test_uploads_that_are_cut_off_leave_nothing(tmp_path: Path, trace: Path) -> None:
    """Sixty clients that close or reset the connection half-way: no file, no descriptor, no memory."""
    server = Server(data=tmp_path / "data").start()
    try:
        with server.client() as client:
            for _ in range(10):
                _half_an_upload(server, reset=False)
            wait_until(lambda: not list((server.data / "uploads").iterdir()))
            time.sleep(0.5)
            files, memory = server.open_files(), psutil.Process(server.pid).memory_info().rss
            for number in range(60):
                _half_an_upload(server, reset=number % 2 == 0)
            wait_until(lambda: server.open_files() <= files)
            assert psutil.Process(server.pid).memory_info().rss < memory + (20 << 20)  # 120 MB were sent
            assert list((server.data / "uploads").iterdir()) == []
            assert not list((server.data / "traces").glob("*")) if (server.data / "traces").exists() else True
            assert client.get("/v1/traces").json() == []
            assert "Traceback" not in server.log.read_text()
    finally:
        server.kill()


def test_a_slow_upload_is_taken(server: Server, client: httpx.Client, trace: Path) -> None:
    """In small pieces with pauses, while others are answered."""
    content = tar_of(trace)
    size = -(-len(content) // 20)
    edge = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.tgz"\r\n\r\n'

    def pieces() -> Any:
        yield edge
        for start in range(0, len(content), size):
            time.sleep(0.05)
            assert client.get("/healthz").status_code == 200
            yield content[start : start + size]
        yield b"\r\n--x--\r\n"

    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    with server.client() as other:
        answer = other.post("/v1/traces", content=pieces(), headers=headers)
    assert answer.status_code == 201, answer.text


def test_who_is_silent_within_a_body_is_not_waited_for() -> None:
    """408 after a while, to whoever still listens; silence after the body is patience, and kept."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        await asyncio.sleep(0.2)  # longer than may be silent within a body
        await Response(body)(scope, receive, send)

    def ask(*messages: Message) -> list[Message]:
        told: list[Message] = []
        coming = list(messages)

        async def receive() -> Message:
            return coming.pop(0) if coming else await asyncio.sleep(10, {"type": "http.disconnect"})

        async def send(message: Message) -> None:
            told.append(message)

        scope = {"type": "http", "method": "POST", "path": "/healthz", "headers": [(b"host", b"127.0.0.1")]}
        asyncio.run(Guard(app, limits=Limits(stall_s=0.1), explain=Problem.response)(scope, receive, send))
        return told

    half, rest = ({"type": "http.request", "body": b"ab", "more_body": more} for more in (True, False))
    assert ask(half)[0]["status"] == 408
    assert ask(half, rest)[1]["body"] == b"abab"


def _half_an_upload(server: Server, *, reset: bool) -> None:
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.tar"\r\n\r\n'
    head = (
        f"POST /v1/traces HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nContent-Length: 9000000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as raw:
        raw.sendall(head.encode() + part + os.urandom(2_000_000))
        if reset:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
