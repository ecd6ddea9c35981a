"""An engine that answers at once, and a client that asks: as little as HTTP needs, for `proxy.py`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Coroutine
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

REPOSITORY = Path(__file__).parents[1]
CLI = "from placement.cli import main; main()"
ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'1a\r\ndata: {"choices": ["a"]}\n\n\r\n0\r\n\r\n'
)
HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: engine\r\n"
    b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
)
END = b"0\r\n\r\n"


def environment(checkout: Path = REPOSITORY) -> dict[str, str]:
    """Of a command that runs the library of a checkout, with one thread."""
    path = os.pathsep.join(filter(None, (str(checkout), str(checkout / "api"), os.environ.get("PYTHONPATH"))))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run(whole: Coroutine[Any, Any, Result]) -> Result:
    """On uvloop where it is installed, as the proxy itself: client, stub and proxy share the cores."""
    factory = None
    if find_spec("uvloop") is not None:
        import uvloop

        factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(whole)


def serve_stub(stack: contextlib.ExitStack) -> int:
    """Start the engine in a process of its own; its port."""
    process = subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    stack.callback(process.wait)
    stack.callback(process.kill)
    assert process.stdout is not None
    return int(process.stdout.readline())


class Engine(asyncio.Protocol):
    """Answers as soon as a body is whole."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.came, self.missing = b"", 0

    def data_received(self, data: bytes) -> None:
        if self.missing:
            self.missing -= len(data)
        else:
            self.came += data
            head, end, body = self.came.partition(b"\r\n\r\n")
            if not end:
                return
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            self.missing = (int(lengths[0].partition(b":")[2]) if lengths else 0) - len(body)
        if self.missing <= 0:
            self.came, self.missing = b"", 0
            self.transport.write(ANSWER)


class Exchange(asyncio.Protocol):
    """One connection; one request at a time."""

    @staticmethod
    async def open(port: int) -> Exchange:
        return (await asyncio.get_running_loop().create_connection(Exchange, "127.0.0.1", port))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: asyncio.Transport = transport  # type: ignore[assignment]
        self.done: asyncio.Future[None] | None = None

    async def ask(self, body: bytes) -> float:
        """When the first byte came, once all have."""
        self.first, self.end = 0.0, b""
        self.done = asyncio.get_running_loop().create_future()
        self.transport.write(HEAD % len(body) + body)
        await self.done
        return self.first

    def data_received(self, data: bytes) -> None:
        if not self.first:
            self.first = time.perf_counter()
            if data[9:12] != b"200":
                raise SystemExit(f"no answer but {data[:300]!r}")
        self.end = (self.end + data)[-len(END) :]
        if self.end == END and self.done is not None and not self.done.done():
            self.done.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.done is not None and not self.done.done():
            self.done.set_exception(ConnectionError("the connection was closed"))

    def close(self) -> None:
        self.transport.close()


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Engine, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    run(main())
