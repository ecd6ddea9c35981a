"""A real server in a process of its own, asked over HTTP."""

from __future__ import annotations

import io
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

for needed in ("fastapi", "uvicorn", "sqlalchemy", "alembic", "dbos", "httpx"):
    pytest.importorskip(needed, reason=f"the service's packages are not installed: {needed}")

import httpx

START_S = 60.0


@dataclass(slots=True, kw_only=True)
class Server:
    """`placement serve` on a loopback port."""

    data: Path
    arguments: tuple[str, ...] = ()
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.data.with_suffix(".log")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Server:
        self.port = self.port or free_port()
        command = [sys.executable, "-c", "from placement.cli import main; main()", "serve", "--data", str(self.data)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--port", str(self.port), *self.arguments], stdout=log, stderr=subprocess.STDOUT
            )
        end = time.monotonic() + START_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            try:
                httpx.get(f"{self.url}/healthz", timeout=5).raise_for_status()
                return self
            except httpx.TransportError:
                time.sleep(0.05)
        raise AssertionError(f"the server does not answer: {self.log.read_text()}")

    def kill(self, signum: int = signal.SIGKILL) -> None:
        if self.process is not None:
            self.process.send_signal(signum)
            self.process.wait(30)
            self.process = None

    def client(self, token: str | None = None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=90)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tar_of(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def make_server() -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def make(data: Path, *arguments: str) -> Server:
        servers.append(Server(data=data, arguments=arguments).start())
        return servers[-1]

    yield make
    for server in servers:
        server.kill(signal.SIGTERM)


@pytest.fixture(scope="session")
def server(make_server: Callable[..., Server], tmp_path_factory: pytest.TempPathFactory, trace: Path) -> Server:
    """One without tokens, shared by tests that only add to it."""
    return make_server(tmp_path_factory.mktemp("service") / "data", "--traces-folder", str(trace.parent))


@pytest.fixture(scope="session")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


@pytest.fixture(scope="session")
def trace(tmp_path_factory: pytest.TempPathFactory, write_trace: Any) -> Path:
    """Two layers of eight experts, top-2; requests have tastes, prefill and decode are not told apart."""
    folder: Path = tmp_path_factory.mktemp("traces") / "tiny"
    write_trace(folder, tokens=300, requests=12, spread=1.5, num_shards=2)
    return folder


@pytest.fixture(scope="session")
def trace_id(client: httpx.Client, trace: Path) -> str:
    answer = client.post("/v1/traces", files={"file": ("tiny.tar.gz", tar_of(trace))})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


def problem_of(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The body of an error, which says what is wrong and how to mend it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert body["status"] == status
    assert body["detail"]
    assert body["mend"]
    return body


os.environ.setdefault("OMP_NUM_THREADS", "1")
