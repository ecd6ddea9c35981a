"""A real server in a process of its own, asked over HTTP; what tests of the service share."""

from __future__ import annotations

import io
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil

START_S = 60.0
LEFT_S = 60.0  # within which all processes of a service end after it


@dataclass(slots=True, kw_only=True)
class Server:
    """`placement serve` on a loopback port; `prefix` is a command that runs it."""

    data: Path
    arguments: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    log_name: str = "server"
    port: int = 0
    process: subprocess.Popen[bytes] | None = None
    log: Path = field(init=False)

    def __post_init__(self) -> None:
        self.log = self.data.with_suffix(f".{self.log_name}.log")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> Server:
        return self.launch().wait()

    def launch(self) -> Server:
        self.port = self.port or free_port()
        command = [sys.executable, "-c", "from placement.cli import main; main()", "serve", "--data", str(self.data)]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.prefix, *command, "--port", str(self.port), *self.arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # so that all that it leaves can be found
            )
        return self

    def wait(self) -> Server:
        """Until it answers."""
        assert self.process is not None
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

    def close(self) -> None:
        """End it as an operator does. Raises AssertionError if a process of its own is left, which is ended too."""
        if self.process is None:
            return
        group = self.process.pid
        self.kill(signal.SIGTERM)
        end = time.monotonic() + LEFT_S
        while members(group) and time.monotonic() < end:
            time.sleep(0.02)
        left = members(group)
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
        assert not left, f"processes outlive their service: {left}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def open_files(self) -> int:
        """Descriptors of the server's process, less those of SQLite: a pool opens connections late and keeps them."""
        return sum(".sqlite" not in file for file in self._files())

    def _files(self) -> Iterator[str]:
        for one in Path(f"/proc/{self.pid}/fd").iterdir():
            with suppress(FileNotFoundError):  # closed meanwhile
                yield str(one.readlink())

    def client(self, token: str | None = None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=90)


def members(group: int) -> list[str]:
    """The commands of the processes of a group."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.NoSuchProcess, ProcessLookupError, psutil.ZombieProcess):
            if os.getpgid(one.pid) == group and one.status() != psutil.STATUS_ZOMBIE:
                found.append(f"{one.pid} {' '.join(one.cmdline())[:200]}")
    return found


def wait_until(true: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


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


def upload(client: httpx.Client, trace: Path) -> str:
    """The id of the trace at the service."""
    answer = client.post("/v1/traces", files={"file": ("t.tgz", tar_of(trace))})
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


def statuses(port: int, sent: bytes, number: int) -> list[bytes]:
    """Of the answers to requests that come one after the other, without a pause."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as opened:
        threading.Thread(target=opened.sendall, args=(sent,), daemon=True).start()
        found = b""
        while found.count(b"HTTP/1.1 ") < number:
            found += opened.recv(1 << 16)
    return re.findall(rb"HTTP/1.1 (\d+)", found)


def answered(client: httpx.Client, path: str, body: dict[str, Any]) -> httpx.Response:
    """The answer of a job, asked again while it is computed: at first kernels compile. The same request is one job."""
    for _ in range(5):
        answer = client.post(path, params={"wait": 60}, json=body)
        if answer.status_code != 202:
            break
    return answer
