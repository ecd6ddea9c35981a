"""HTTP/1.1 as uvicorn's fastest parser reads it, with bounds that this parser does not have."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, ClassVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from placement.errors import OptionError
from placement_api.lobby import Lobby

MOST_HEAD_BYTES = 1 << 16
FRAME_BYTES = 16  # around each byte of a body that comes in the smallest of chunks
AT_ONCE = 16  # connections that are taken in before those taken in are looked at
WAITING = 2048  # connections that the system keeps for us meanwhile


class BoundedHttp(HttpToolsProtocol):
    """Nobody makes it collect a head without end, or wait for one: line, headers and trailers have `MOST_HEAD_BYTES`
    together, and whoever sends no head stays in the lobby for a while only."""

    lobby: ClassVar[Lobby]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._left = MOST_HEAD_BYTES

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        full = len(self.connections) > self.lobby.most
        if full and self.lobby.make_room() is None:  # all others are being answered
            self.hang_up()
            return
        self.lobby.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lobby.leave(self)
        super().connection_lost(exc)

    def hang_up(self) -> None:
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # hung up on, with this on the way
            return
        self._left -= len(data)
        super().data_received(data)
        if self._left < 0 and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is longer than {MOST_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._left = MOST_HEAD_BYTES
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self.lobby.leave(self)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._left += FRAME_BYTES * len(body)
        super().on_body(body)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:  # no request of it waits
            self.lobby.enter(self)


def bounded(lobby: Lobby) -> type[BoundedHttp]:
    """The protocol of a server whose connections wait in this lobby."""
    return type("BoundedHttp", (BoundedHttp,), {"lobby": lobby})


class Server(uvicorn.Server):
    """Takes connections in a few at a time, so that the lobby has hung up on some before descriptors run out."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for one in sockets or []:
            one.listen(WAITING)  # asyncio has one number for both


def listen(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of the host. Raises OptionError."""
    opened: list[socket.socket] = []
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        for family, address in dict.fromkeys((one[0], one[4]) for one in found):
            opened.append(socket.create_server(address, family=family))
    except OSError as error:
        for one in opened:
            one.close()
        reason = error.strerror or str(error)
        raise OptionError(
            f"cannot listen on {host}:{port}: {reason}; give another --port or --host, or end what listens there"
        ) from None
    return opened
