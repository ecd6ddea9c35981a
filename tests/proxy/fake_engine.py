"""A fake engine: an HTTP server that writes down what it is asked, byte for byte, and answers as a test tells it to."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

Answer = Callable[["Seen", asyncio.StreamWriter], Awaitable[None]]


@dataclass(slots=True, kw_only=True)
class Seen:
    """A request as it came."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    gone: threading.Event = field(default_factory=threading.Event)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name), None)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def plain(seen: Seen, writer: asyncio.StreamWriter) -> None:
    """200 and a short JSON document."""
    body = b'{"object": "answer"}'
    writer.write(b"HTTP/1.1 200 OK\r\nServer: fake\r\nContent-Type: application/json\r\n")
    writer.write(b"Content-Length: %d\r\n\r\n" % len(body) + (b"" if seen.method == "HEAD" else body))
    await writer.drain()


def stream(parts: list[bytes], pause_s: float = 0.0, *, end: bool = True) -> Answer:
    """Server-sent events, chunk by chunk; without `end` the connection is closed in the middle."""

    async def answer(seen: Seen, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for part in parts:
            writer.write(b"%x\r\n%s\r\n" % (len(part), part))
            await writer.drain()
            await asyncio.sleep(pause_s)
        if end:
            writer.write(b"0\r\n\r\n")
            await writer.drain()
        else:
            writer.close()

    return answer


class FakeEngine:
    """Listens on a free port of loopback in a thread of its own; `seen` has all requests, `answer` is what it does."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.answer: Answer = plain
        self.port = 0
        self.connections = 0  # that were ever made
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._connections: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        self._ready.wait()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def last(self, number: int = 1, wait_s: float = 5.0) -> Seen:
        """The last request, once there are `number`."""
        end = time.monotonic() + wait_s
        while len(self.seen) < number and time.monotonic() < end:
            time.sleep(0.01)
        return self.seen[-1]

    def stop(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._main.cancel)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)

        async def main() -> None:
            server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=1 << 20)
            self.port = server.sockets[0].getsockname()[1]
            self._ready.set()
            try:
                await asyncio.Event().wait()
            finally:
                server.close()
                for writer in self._connections:
                    writer.transport.abort()

        self._main = self._loop.create_task(main())
        try:
            self._loop.run_until_complete(self._main)
        except asyncio.CancelledError:
            pass
        finally:
            for task in asyncio.all_tasks(self._loop):
                task.cancel()
            self._loop.run_until_complete(asyncio.sleep(0.01))
            self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(writer)
        self.connections += 1
        try:
            while (seen := await _read(reader)) is not None:
                if seen.target != "/health":
                    self.seen.append(seen)
                answering = asyncio.ensure_future((self.answer if seen.target != "/health" else plain)(seen, writer))
                while not answering.done():  # an engine looks whether somebody still listens
                    await asyncio.wait((answering,), timeout=0.02)
                    if reader.at_eof() or reader.exception() is not None:
                        answering.cancel()
                        seen.gone.set()
                if not answering.cancelled() and answering.exception() is not None:  # reset while it wrote
                    seen.gone.set()
                if writer.transport.is_closing() or seen.gone.is_set():
                    break
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(writer)
            writer.close()


async def _read(reader: asyncio.StreamReader) -> Seen | None:
    """The next request of a connection, chunked or not; None at its end."""
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    except asyncio.IncompleteReadError:
        return None
    first, *lines = head.strip().split("\r\n")
    method, target, _ = first.split(" ")
    headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    small = {name.lower(): value for name, value in headers}
    body = b""
    if "content-length" in small:
        body = await reader.readexactly(int(small["content-length"]))
    elif small.get("transfer-encoding") == "chunked":
        while size := int(await reader.readline(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    return Seen(method=method, target=target, headers=headers, body=body)
