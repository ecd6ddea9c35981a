"""What is asked most, answered from memory before the server makes a task of it, and with one write.

The routes say the same and remember what they read: whatever is not known here at once, or not right, goes on to them.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

from fastapi import Response
from pydantic import ValidationError
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from placement.errors import PlacementError
from placement_api.logs import ACCESS
from placement_api.measure import NAME, access_line, name_of
from placement_api.memory import Memory
from placement_api.middleware import check_site, secured
from placement_api.problems import Problem
from placement_api.routes.maps import RouteBody, routed
from placement_api.service import Service
from placement_api.store.tables import JobRow
from placement_api.stored import Stored
from placement_api.tokens import ANYONE, FROM_MEMORY, Caller

PREFIX = b"/v1/placements/"
LONGEST_BODY = 1 << 18
HEADS_BYTES = 1 << 20
_FILES = {"": "placement", "/report": "report", "/grouping": "grouping"}  # by the end of the path
_ROUTE = "/route"
_BODY = (b"content-length", b"transfer-encoding")
log = logging.getLogger("placement.service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A request whose placement and caller are known: `end` is the end of its path, `tls` what a proxy says of it."""

    row: JobRow
    end: str
    caller: Caller
    headers: dict[bytes, bytes]
    path: str
    client: str
    tls: bool
    began: float


class Hits:
    """Belongs to the event loop. `trusted` are the proxies that are believed, as uvicorn's `forwarded_allow_ips`."""

    def __init__(self, service: Service, trusted: str | list[str]) -> None:
        self._here = service
        self._trusted = ProxyHeadersMiddleware(_nothing, trusted).trusted_hosts
        self._heads: Memory[bytes] = Memory(HEADS_BYTES)

    def ask(self, method: bytes, url: bytes, headers: list[tuple[bytes, bytes]], client: str) -> Hit | None:
        """The request, if it may be answered here: of whom the store was asked less than a second ago."""
        if not url.startswith(PREFIX) or b"?" in url or b"%" in url or b"#" in url:
            return None
        began = time.perf_counter()
        placement, _, end = url[len(PREFIX) :].decode("ascii").partition("/")
        end = f"/{end}" if end else ""
        found = dict(headers)
        if len(found) < len(headers) or b"expect" in found:
            return None
        if method == b"GET":
            right = end in _FILES and not any(name in found for name in _BODY)
        else:
            right = method == b"POST" and end == _ROUTE
            right = right and found.get(b"content-type", b"").startswith(b"application/json")
        row = self._here.recent.known_row(placement) if right else None
        caller = None if row is None else self._caller(found)
        if row is None or caller is None:
            return None
        client, tls = self._through(found, client)
        return Hit(
            row=row,
            end=end,
            caller=caller,
            headers=found,
            path=url.decode("ascii"),
            client=client,
            tls=tls,
            began=began,
        )

    def answer(self, hit: Hit, body: bytes, date: bytes) -> bytes | None:
        """All of the answer; None if the routes have to give it. `date` are header lines that the server adds."""
        try:
            answer = self._route(hit, body) if hit.end == _ROUTE else self._file(hit)
        except Exception as error:
            if not isinstance(error, (ValidationError, PlacementError)):
                log.exception("%s was not answered from memory", hit.path)
            return None
        if answer is None:
            return None
        status, head, content = answer
        here = self._here
        here.tokens.spend(hit.caller, FROM_MEMORY)
        name = name_of(hit.headers.get(NAME))
        route = f"/v1/placements/{{placement}}{hit.end}"
        seconds = time.perf_counter() - hit.began
        method = "POST" if hit.end == _ROUTE else "GET"
        here.metrics.answered(method, route, status, seconds)
        if ACCESS.isEnabledFor(logging.INFO):
            access_line(
                seconds,
                hit.path,
                caller=hit.caller,
                client=hit.client,
                method=method,
                route=route,
                status=status,
                id=hit.row.id,
                request=name.decode(),
            )
        return b"".join((head, date, NAME, b": ", name, b"\r\n\r\n", content))

    def _caller(self, headers: dict[bytes, bytes]) -> Caller | None:
        """Who asks, if that is known, may read and does not ask too often; a cookie is the routes' to look at."""
        given = headers.get(b"authorization")
        if given is None and b"cookie" in headers:
            return None
        caller = self._here.tokens.known(None if given is None else given.decode("latin-1"))
        if caller is None or not caller.may("read"):
            return None
        if caller.id == ANYONE:
            try:
                check_site(_text(headers, b"host"), _text(headers, b"origin"))
            except Problem:
                return None
        return caller

    def _through(self, headers: dict[bytes, bytes], client: str) -> tuple[str, bool]:
        """Who asked, and whether by TLS, as a proxy says that is believed."""
        proto, forwarded = headers.get(b"x-forwarded-proto"), headers.get(b"x-forwarded-for")
        if (proto is None and forwarded is None) or client not in self._trusted:
            return client, False
        if forwarded is not None:
            client = self._trusted.get_trusted_client_address(forwarded.decode("latin-1"))[0] or client
        return client, proto is not None and proto.strip() == b"https"

    def _file(self, hit: Hit) -> tuple[int, bytes, bytes] | None:
        name = _FILES[hit.end]
        digest = hit.row.files.get(name)
        if digest is None:
            return None
        accepted, known = _text(hit.headers, b"accept-encoding"), _text(hit.headers, b"if-none-match")
        stored = Stored.of(accepted, known, name, digest)
        content = stored.known_content(self._here.recent)
        if content is None:
            return None
        status = 304 if stored.held else 200
        key = (stored.etag, stored.held, name, hit.tls)
        head = self._heads.get(key)
        if head is None:
            head = _head(stored.answer(content), tls=hit.tls)
            self._heads.put(key, head, len(head))
        return status, head, content

    def _route(self, hit: Hit, body: bytes) -> tuple[int, bytes, bytes] | None:
        router = self._here.recent.known_router(hit.row.files.get("grouping", ""))
        if router is None or len(body) > min(LONGEST_BODY, self._here.settings.limits.body_bytes):
            return None
        answer = routed(router, RouteBody.model_validate_json(body))
        return 200, _head(answer, tls=hit.tls), bytes(answer.body)


def _head(answer: Response, *, tls: bool) -> bytes:
    """The status line and the headers of an answer, without an end."""
    lines = [b"HTTP/1.1 304 Not Modified\r\n" if answer.status_code == 304 else b"HTTP/1.1 200 OK\r\n"]
    for name, value in secured(answer.raw_headers, tls=tls, private=True):
        lines += [name, b": ", value, b"\r\n"]
    return b"".join(lines)


def _text(headers: dict[bytes, bytes], name: bytes) -> str | None:
    value = headers.get(name)
    return None if value is None else value.decode("latin-1")


async def _nothing(*_: object) -> None:
    """No application is behind the reader of a proxy's headers."""
