"""One HTTP/1.1 connection to a backend: a request out, its answer as it comes."""

from __future__ import annotations

import asyncio

import httptools

HEAD_BYTES = 1 << 16  # of a head of an answer
HELD_BYTES = 1 << 18  # of a body that nobody has taken yet; the backend waits then
AT_ONCE_BYTES = 1 << 16  # a body up to here is written together with its head

LONG_HEAD, ODD_STATUS = "LongHead", "OddStatus"

RawHeaders = list[tuple[bytes, bytes]]


class Broken(Exception):
    """The backend ended the connection, or did not speak HTTP."""

    @property
    def refused(self) -> bool:
        """The backend answered with what cannot be passed on."""
        kind = str(self)
        return kind in (LONG_HEAD, ODD_STATUS) or kind.startswith("HttpParser")


class Connection(asyncio.Protocol):
    """One request at a time. `open` of the transport is whoever makes it; see `Upstream`."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: RawHeaders = []
        self.idle_since = 0.0
        self._transport: asyncio.Transport | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._held = 0
        self._paused = False
        self._runs = False  # a request is out whose answer is not whole
        self._headed = False  # its head is whole
        self._reusable = True
        self._bodiless = self._until_end = False
        self._head_left = 0
        self._broke: str | None = None

    def send(self, head: bytes, body: bytes | None, *, bodiless: bool) -> None:
        """Send a request.

        Args:
            head: Its head, to the empty line.
            body: Its body; None: it has none.
            bodiless: The answer has a head alone, as to HEAD.
        """
        assert self._transport is not None
        self.headers, self._parts, self._held = [], [], 0
        self._runs, self._headed, self._bodiless, self._until_end = True, False, bodiless, False
        self._head_left = HEAD_BYTES
        if body is not None and len(body) <= AT_ONCE_BYTES:
            self._transport.write(head + body)
        else:
            self._transport.write(head)
            if body:
                self._transport.write(body)

    async def head(self) -> None:
        """Wait for the head of the answer: `status` and `headers`. Raises Broken."""
        while not self._headed:
            await self._wait()

    async def more(self) -> bytes:
        """What came of the body since, as soon as there is something; empty at its end. Raises Broken."""
        while not self._parts:
            if not self._runs:
                return b""
            await self._wait()
        came = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts.clear()
        self._held = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return came

    @property
    def whole(self) -> bool:
        """Whether the answer has ended, and all of its body was taken."""
        return not self._runs and not self._parts

    @property
    def usable(self) -> bool:
        """Whether another request may go out."""
        transport = self._transport
        return (
            self._reusable
            and not self._runs
            and not self._parts
            and transport is not None
            and not transport.is_closing()
            and not transport.get_write_buffer_size()
        )

    def abort(self) -> None:
        """Close it at once: what is on the way is lost."""
        if self._transport is not None:
            self._transport.abort()

    async def _wait(self) -> None:
        if self._broke is not None:
            raise Broken(self._broke)
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, why: str) -> None:
        self._reusable = False
        self._broke = self._broke or why
        self.abort()
        self._wake()

    # of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        if not self._runs:  # said without being asked
            self._fail("Unasked")
            return
        if not self._headed:
            self._head_left -= len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if self._runs or not self._headed:
                self._fail(type(error).__name__)
            else:
                self._reusable = False  # the answer is whole, and more than that came
        if not self._headed and self._head_left < 0:
            self._fail(LONG_HEAD)
        if self._held > HELD_BYTES and self._runs and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._reusable = False
        if self._runs and self._headed and self._until_end and exc is None:
            self._runs = False
        elif self._runs:
            self._broke = self._broke or (type(exc).__name__ if exc is not None else "Disconnected")
        self._wake()

    # of the parser

    def on_message_begin(self) -> None:
        if not self._runs:  # a second answer
            self._reusable = False

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._runs and not self._headed:  # what trails a body stays here
            self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        if not self._runs:
            return
        self.status = self._parser.get_status_code()
        if not 100 <= self.status < 600:
            self._fail(ODD_STATUS)
            return
        if self.status < 200:  # another head follows
            self.headers = []
            return
        self._headed = True
        self._reusable = self._parser.should_keep_alive() and not self._bodiless
        names = dict(self.headers)
        coded = names.get(b"transfer-encoding")
        self._until_end = b"content-length" not in names if coded is None else not coded.lower().endswith(b"chunked")
        if self._bodiless:
            self._runs = False

    def on_body(self, body: bytes) -> None:
        if self._runs:
            self._parts.append(body)
            self._held += len(body)

    def on_message_complete(self) -> None:
        if self._headed:
            self._runs = False
