"""A service of its own for one measurement: a folder, a loopback port, a process."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

START_S = 60.0
WAIT_S = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    url: str
    pid: int
    token: str

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, bytes, dict[str, str]]:
        """(status, body, headers with lower-case names) of one request."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | (
            {"Authorization": f"Bearer {self.token}"} if self.token else {}
        )
        request = urllib.request.Request(self.url + path, data=data, headers=headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read(), {name.lower(): value for name, value in answer.headers.items()}
        except urllib.error.HTTPError as error:
            raise SystemExit(f"{method} {path}: {error.code} {error.read().decode()}") from None

    def json(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self.ask(method, path, body)[1])

    def busy_s(self) -> float:
        """CPU time of the process of the service, its jobs not counted."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def until(self, job: str, true: Callable[[Any], bool]) -> Any:
        """The job as soon as that is true of it."""
        end = time.monotonic() + WAIT_S
        while time.monotonic() < end:
            now = self.json("GET", f"/v1/jobs/{job}")
            if true(now):
                return now
            if now["error"]:
                break
            time.sleep(0.1)
        raise SystemExit(f"job {job} goes on, or failed: {now}")

    def done(self, job: str) -> Any:
        return self.until(job, lambda now: now["state"] == "done")


@contextmanager
def served(data: Path, *arguments: str, token: str = "") -> Iterator[Server]:
    """`placement serve` with its defaults, and these options."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, "-c", "from placement.cli import main; main()", "serve", "--data", str(data)]
    log = data.with_suffix(".log")
    with log.open("wb") as out:
        process = subprocess.Popen([*command, "--port", port, *arguments], stdout=out, stderr=subprocess.STDOUT)
    try:
        url, end = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(f"{url}/healthz", timeout=5).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > end:
                    raise SystemExit(f"the service does not start: {log.read_text()}") from None
                time.sleep(0.05)
        yield Server(url=url, pid=process.pid, token=token)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)
