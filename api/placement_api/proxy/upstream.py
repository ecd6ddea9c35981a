"""The backends: one pool of connections, headers as they came, bodies as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import aiohttp
from multidict import CIMultiDict
from yarl import URL

from placement.errors import OptionError

CONNECT_S = 10.0
KEEP_S = 2.0  # shorter than any engine keeps an idle connection, so that none closes the one that we are writing to
HEAD_BYTES = 1 << 16
AWAY_S = 1.0  # a backend that could not be reached is not asked again for so long
# of one connection alone (RFC 9110, 7.6.1), and what is told anew for the next one
HOP = frozenset(
    (
        *(b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization"),
        *(b"te", b"trailer", b"transfer-encoding", b"upgrade", b"host", b"content-length", b"expect"),
    )
)
HOP_OF_ANSWERS = HOP - {b"content-length"}

RawHeaders = Iterable[tuple[bytes, bytes]]


class Away(Exception):
    """The backend could not be reached: nothing of the request was sent."""


class Broken(Exception):
    """The backend ended the connection, or did not speak HTTP."""


class Upstream:
    """Asks backends; made within a running loop.

    Args:
        backends: Their addresses, such as http://10.0.0.1:8000.
    """

    def __init__(self, backends: tuple[str, ...]) -> None:
        self.backends = tuple(backend_url(one) for one in backends)
        self._away = [0.0] * len(backends)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_S, ttl_dns_cache=60),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S),
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            auto_decompress=False,
            trust_env=False,
            max_line_size=HEAD_BYTES,
            max_field_size=HEAD_BYTES,
        )

    def away(self) -> frozenset[int]:
        """The backends that could not be reached within the last second."""
        now = asyncio.get_running_loop().time()
        return frozenset(at for at, until in enumerate(self._away) if until > now)

    @asynccontextmanager
    async def ask(
        self, backend: int, method: str, target: str, headers: RawHeaders, body: bytes | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer, whose body is still to come.

        Raises:
            Away: Nothing was sent: another backend may be asked.
            Broken: The connection ended before the answer began.
        """
        url = URL(self.backends[backend] + target, encoded=True)
        passed = passed_on(headers, HOP)
        given = CIMultiDict((name.decode("latin-1"), value.decode("latin-1")) for name, value in passed)
        try:
            answer = await self._session.request(method, url, headers=given, data=body, allow_redirects=False)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            self._away[backend] = asyncio.get_running_loop().time() + AWAY_S
            raise Away(type(error).__name__) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Broken(type(error).__name__) from None
        try:
            yield answer
        finally:
            answer.close()  # a whole answer has given its connection back by now; another's is closed

    async def healthy(self, backend: int) -> bool:
        """Whether its `/health` answers, whatever it says but an error of its own."""
        try:
            async with asyncio.timeout(1.0), self._session.get(self.backends[backend] + "/health") as answer:
                return answer.status < 500
        except (aiohttp.ClientError, OSError):
            return False

    async def close(self) -> None:
        """End all connections."""
        await self._session.close()


def backend_url(given: str) -> str:
    """The address of a backend, without a slash at its end. Raises OptionError."""
    try:
        url = URL(given)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host or url.query_string or url.fragment:
        raise OptionError(f"--backend {given} is no address of a server; give one such as http://10.0.0.1:8000")
    return given.rstrip("/")


def passed_on(headers: RawHeaders, hop: frozenset[bytes]) -> list[tuple[bytes, bytes]]:
    """The headers that go on, names in small letters: all but those of this connection, in order, repeated ones too."""
    small = [(name.lower(), value) for name, value in headers]
    named = [word.strip().lower() for name, value in small if name == b"connection" for word in value.split(b",")]
    left_out = hop.union(named) if named else hop
    return [pair for pair in small if pair[0] not in left_out]
