"""An application that says what came, behind the doors of the service."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from typing import Any

import uvicorn
from placement_api.lobby import Lobby
from placement_api.wire import AT_ONCE, bounded, listen
from placement_api.wire import Server as HttpServer
from tests_service import free_port


class Behind:
    """Answers the body that came; `/slow` when `go` is set, and `/stream` with dots until then."""

    def __init__(self, most: int, head_s: float, at_once: Any = None) -> None:
        self.port = free_port()
        self.lobby = Lobby(most=most, head_s=head_s)
        protocol = bounded(self.lobby, at_once)
        self.slow, self.go = threading.Semaphore(0), threading.Event()
        config = uvicorn.Config(
            self.app, interface="asgi3", http=protocol, backlog=AT_ONCE, log_config=None, lifespan="off"
        )
        self.server = HttpServer(config)
        self.thread = threading.Thread(target=self.server.run, args=(listen("127.0.0.1", self.port),))

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"1000")]})
            while not self.go.is_set():
                await send({"type": "http.response.body", "body": b".", "more_body": True})
                await asyncio.sleep(0.05)
            return
        if scope["path"] == "/slow":
            self.slow.release()
            while not self.go.is_set():
                await asyncio.sleep(0.01)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        length = str(len(body)).encode()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", length)]})
        await send({"type": "http.response.body", "body": body})

    def connect(self, sent: bytes = b"") -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        opened.sendall(sent)
        return opened

    def __enter__(self) -> Behind:
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *_: object) -> None:
        self.go.set()
        self.server.should_exit = True
        self.thread.join(10)


def closed(opened: socket.socket) -> bool:
    """Whether the other side hangs up within five seconds."""
    try:
        return opened.recv(1000) == b""
    except ConnectionError:
        return True
    except TimeoutError:
        return False
