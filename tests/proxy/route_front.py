"""`placement route` in a process of its own, and what it is started with."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

REPOSITORY = Path(__file__).parents[2]
CLI = "from placement.cli import main; main()"
WORDS = ("alpha", "beta", "gamma", "delta")  # each is at home on the node of its place


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What `placement route` is started with."""

    map_file: Path
    grouping: Path
    tokenizer: Path


def environment() -> dict[str, str]:
    """Of a process that runs the library of this checkout."""
    path = os.pathsep.join(filter(None, (str(REPOSITORY), str(REPOSITORY / "api"), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path}


@dataclass(slots=True, kw_only=True)
class Front:
    """`placement route` in a process of its own."""

    arguments: tuple[str, ...]
    port: int = 0
    process: subprocess.Popen[str] | None = None
    client: httpx.Client = field(init=False)

    def start(self) -> Front:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLI, "route", *self.arguments, "--port", str(self.port)],
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=20, trust_env=False)
        end = time.monotonic() + 60
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx.TransportError):
                if self.client.get("/healthz").status_code == 200:
                    return self
            time.sleep(0.05)
        raise AssertionError(f"the proxy did not start: {self.stop()}")

    def stop(self, how: signal.Signals = signal.SIGTERM, wait_s: float = 20) -> str:
        """End it; what it wrote to stderr."""
        assert self.process is not None
        self.client.close()
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            return self.process.communicate(timeout=wait_s)[1]
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise

    def chat(self, text: str, **more: Any) -> httpx.Response:
        return self.client.post(
            "/v1/chat/completions", json={"model": "m", "messages": [{"role": "user", "content": text}], **more}
        )

    def series(self) -> dict[str, float]:
        """The metrics by name and labels, as they are written."""
        lines = self.client.get("/metrics").text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[:1] != "#"}


def arguments(sample: Sample, *more: str) -> list[str]:
    """`--map`, `--grouping`, `--tokenizer`; of `more` the addresses become `--backend`."""
    given = ["--map", str(sample.map_file), "--grouping", str(sample.grouping), "--tokenizer", str(sample.tokenizer)]
    for one in more:
        given += ["--backend", one] if one.startswith("http") else [one]
    return given
