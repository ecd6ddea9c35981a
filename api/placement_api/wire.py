"""HTTP/1.1 as uvicorn's fastest parser reads it, with bounds that this parser does not have."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, ClassVar, Protocol, TypeVar

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from placement.errors import OptionError
from placement_api.lobby import Lobby

MOST_HEAD_BYTES = 1 << 16
HEADER_BYTES = 4  # around the name and the value of a header
TOO_LONG = f"The head of the request is longer than {MOST_HEAD_BYTES} bytes."
FRAME_BYTES = 16  # around each byte of a body that comes in the smallest of chunks
AT_ONCE = 16  # connections that are taken in before those taken in are looked at
WAITING = 2048  # connections that the system keeps for us meanwhile
Asked = TypeVar("Asked")


class AtOnce(Protocol[Asked]):
    """Answers some requests without the application."""

    def ask(self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]], client: str) -> Asked | None:
        """The request, if it may be one of those."""

    def answer(self, asked: Asked, body: bytes, date: bytes) -> bytes | None:
        """All of the answer, with these header lines of the server; None: the application gives it."""


class BoundedHttp(HttpToolsProtocol):
    """Nobody makes it collect a head without end, or wait for one: line, headers and trailers have `MOST_HEAD_BYTES`
    together, and whoever sends no head stays in the lobby for a while only.

    A request that came all at once on a connection where nothing else is under way is answered `at_once` if it can be:
    without a task, with one write.
    """

    lobby: ClassVar[Lobby]
    at_once: ClassVar[AtOnce[Any] | None]

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._left = MOST_HEAD_BYTES
        self._head = 0  # bytes of the head that comes, so far
        self._headed = False  # the head of a request is whole, and trailers may follow
        self._asked: Any = None
        self._body = b""
        self._running: RequestResponseCycle | None = None

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
        # uvicorn tells the request that came last, which may wait for the one that runs
        self._give_up()

    def hang_up(self) -> None:
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """The last that is written: nothing of an answer that is under way comes before or behind it."""
        running = self._give_up()
        if running is not None and running.response_started:
            self.transport.close()
            return
        super().send_400_response(TOO_LONG if self._head > MOST_HEAD_BYTES else msg)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():  # hung up on, with this on the way
            return
        self._left -= len(data)
        super().data_received(data)
        if self.transport.is_closing():
            return
        if self._left < 0:
            self.send_400_response(TOO_LONG)
        elif self._asked is not None:  # the rest of its body is to come
            self._pass_on()

    def on_message_begin(self) -> None:
        self._left, self._head, self._headed = MOST_HEAD_BYTES, 0, False
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._headed:  # what trails a body is no header (RFC 9110, 6.5.1)
            self._head += len(name) + len(value) + HEADER_BYTES
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head += len(self.url)
        if self._head > MOST_HEAD_BYTES:  # of one that came within one reading
            raise ValueError(TOO_LONG)  # which the parser makes an error of its own
        self._headed = True
        if self.at_once is not None and self._quiet():
            client = self.client[0] if self.client else ""
            self._asked = self.at_once.ask(self.parser.get_method(), self.url, self.headers, client)
        if self._asked is None:
            self._begin()

    def on_body(self, body: bytes) -> None:
        self._left += FRAME_BYTES * len(body)
        if self._asked is None:
            super().on_body(body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        if self._asked is not None and self.at_once is not None:
            date = b"".join(b"%s: %s\r\n" % one for one in self.server_state.default_headers)
            answer = self.at_once.answer(self._asked, self._body, date)
            if answer is not None:
                self._asked, self._body = None, b""
                self.transport.write(answer)
                self.on_response_complete()
                return
            self._pass_on()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None:  # no request of it waits
            self.lobby.enter(self)

    def _quiet(self) -> bool:
        """Nothing is under way on this connection, which stays open, and what is written goes out at once."""
        busy = self.cycle is not None and not self.cycle.response_complete
        open_end = self.parser.get_http_version() == "1.1" and self.parser.should_keep_alive()
        return not busy and open_end and not self.parser.should_upgrade() and not self.flow.write_paused

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _give_up(self) -> RequestResponseCycle | None:
        """Tell the request that is being answered, if one is, that nobody listens any more."""
        running = self._running
        if running is None or running.response_complete:
            return None
        running.disconnected = True
        running.message_event.set()
        return running

    def _should_upgrade(self) -> bool:
        """Neither the service nor the proxy speaks anything but HTTP; a request for more is answered without."""
        return False

    def _begin(self) -> None:
        self.lobby.leave(self)
        super().on_headers_complete()

    def _pass_on(self) -> None:
        """The application answers after all."""
        body, self._asked, self._body = self._body, None, b""
        self._begin()
        if body:
            super().on_body(body)


def bounded(lobby: Lobby, at_once: AtOnce[Any] | None = None) -> type[BoundedHttp]:
    """The protocol of a server whose connections wait in this lobby, and which of its requests are answered at once."""
    return type("BoundedHttp", (BoundedHttp,), {"lobby": lobby, "at_once": at_once})


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
