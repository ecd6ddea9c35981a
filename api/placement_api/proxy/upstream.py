"""The backends: a pool of connections, headers as they came, bodies as they come."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from placement.errors import OptionError
from placement_api.proxy.connection import Broken, Connection

CONNECT_S = 10.0
KEEP_S = 2.0  # shorter than any engine keeps an idle connection, so that none closes the one that we are writing to
NEXT_ADDRESS_S = 0.25  # a host's next address is tried too if the one before has not answered by then
AWAY_S = 1.0  # a backend that could not be reached is not asked again for so long
# of one connection alone (RFC 9110, 7.6.1), and what is told anew for the next one
HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"host", b"content-length", b"expect"),
    )
)
HOP_OF_ANSWERS = HOP - {b"content-length"}
BODILESS = frozenset((204, 304))  # a length that they tell is of a body which does not follow
WRITTEN = re.compile("[!-~]+")  # of what an address is written
BODIED = frozenset(("POST", "PUT", "PATCH"))

RawHeaders = Iterable[tuple[bytes, bytes]]


class Away(Exception):
    """The backend could not be reached: nothing of the request was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where a backend is.

    Attributes:
        host: Its name or number.
        port: Its port.
        tls: Whether it is spoken to in TLS.
        authority: Host and port as the header `Host` says them.
        prefix: What paths begin with there.
    """

    host: str
    port: int
    tls: bool
    authority: bytes
    prefix: bytes

    @staticmethod
    def of(given: str) -> Address:
        """Of what `--backend` says, such as http://10.0.0.1:8000. Raises OptionError."""
        try:
            url = urlsplit(given if WRITTEN.fullmatch(given) else "")
            host, port = url.hostname, url.port
        except ValueError:
            host = None
        if host is None or url.scheme not in ("http", "https") or "@" in url.netloc or url.query or url.fragment:
            raise OptionError(f"--backend {given} is no address of a server; give one such as http://10.0.0.1:8000")
        tls = url.scheme == "https"
        port = port if port is not None else 443 if tls else 80
        authority, prefix = url.netloc.encode(), url.path.rstrip("/").encode()
        return Address(host=host, port=port, tls=tls, authority=authority, prefix=prefix)


class Upstream:
    """Asks backends; made within a running loop.

    Args:
        backends: Their addresses, such as http://10.0.0.1:8000.
    """

    def __init__(self, backends: tuple[str, ...]) -> None:
        self.backends = tuple(Address.of(one) for one in backends)
        self._loop = asyncio.get_running_loop()
        self._away = [0.0] * len(backends)
        self._idle: tuple[deque[Connection], ...] = tuple(deque() for _ in backends)  # the one used last is last
        self._sweep: asyncio.TimerHandle | None = None

    def away(self) -> frozenset[int]:
        """The backends that could not be reached within the last second."""
        now = self._loop.time()
        return frozenset(at for at, until in enumerate(self._away) if until > now)

    @asynccontextmanager
    async def ask(
        self, backend: int, method: str, target: bytes, headers: RawHeaders, body: bytes | None
    ) -> AsyncIterator[Connection]:
        """The head of the answer: `status`, `headers`. Its body is still to come, by `more`.

        Raises:
            Away: Nothing was sent: another backend may be asked.
            Broken: The connection ended before the answer began.
        """
        head = self._head(backend, method, target, headers, body)
        connection = self._taken(backend) or await self._made(backend)
        try:
            connection.send(head, body, bodiless=method == "HEAD")
            await connection.head()
            yield connection
        finally:
            self._put_back(backend, connection)

    async def healthy(self, backend: int) -> bool:
        """Whether its `/health` answers, whatever it says but an error of its own."""
        try:
            async with asyncio.timeout(1.0), self.ask(backend, "GET", b"/health", (), None) as answer:
                while await answer.more():
                    pass
                return answer.status < 500
        except (Away, Broken, TimeoutError):
            return False

    def close(self) -> None:
        """End all connections that nobody uses."""
        if self._sweep is not None:
            self._sweep.cancel()
        for idle in self._idle:
            for connection in idle:
                connection.abort()
            idle.clear()

    def _head(self, backend: int, method: str, target: bytes, headers: RawHeaders, body: bytes | None) -> bytes:
        address = self.backends[backend]
        lines = [b"%b %b%b HTTP/1.1" % (method.encode(), address.prefix, target), b"host: " + address.authority]
        lines += [b"%b: %b" % pair for pair in passed_on(headers, HOP)]
        if body is not None or method in BODIED:
            lines.append(b"content-length: %d" % len(body or b""))
        return b"\r\n".join((*lines, b"", b""))

    def _taken(self, backend: int) -> Connection | None:
        """An idle connection: the one that was used last, for the others grow old."""
        idle = self._idle[backend]
        while idle:
            connection = idle.pop()
            if connection.usable and self._loop.time() - connection.idle_since < KEEP_S:
                return connection
            connection.abort()
        return None

    async def _made(self, backend: int) -> Connection:
        address = self.backends[backend]
        # uvloop tries the addresses of a host one after the other
        one_by_one = not isinstance(self._loop, asyncio.BaseEventLoop)
        several: dict[str, Any] = {} if one_by_one else {"happy_eyeballs_delay": NEXT_ADDRESS_S}
        try:
            async with asyncio.timeout(CONNECT_S):
                made = await self._loop.create_connection(
                    Connection, address.host, address.port, ssl=address.tls or None, **several
                )
        except (OSError, UnicodeError) as error:  # timeouts, faults of TLS, names that cannot be looked up
            self._away[backend] = self._loop.time() + AWAY_S
            raise Away(type(error).__name__) from None
        return made[1]

    def _put_back(self, backend: int, connection: Connection) -> None:
        if not connection.usable:
            connection.abort()
            return
        connection.idle_since = self._loop.time()
        self._idle[backend].append(connection)
        if self._sweep is None:
            self._sweep = self._loop.call_later(KEEP_S, self._end_old)

    def _end_old(self) -> None:
        """Close those that nobody has used for a while."""
        old = self._loop.time() - KEEP_S
        for idle in self._idle:
            while idle and idle[0].idle_since <= old:
                idle.popleft().abort()
        self._sweep = self._loop.call_later(KEEP_S / 2, self._end_old) if any(self._idle) else None


def passed_on(headers: RawHeaders, hop: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """The headers that go on, names in small letters: all but those of this connection, in order, repeated ones too."""
    small = [(name.lower(), value) for name, value in headers]
    named = [word.strip().lower() for name, value in small if name == b"connection" for word in value.split(b",")]
    left_out = hop.union(named) if named else hop
    return [pair for pair in small if pair[0] not in left_out]
