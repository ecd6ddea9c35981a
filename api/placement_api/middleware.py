"""What holds for every request: size, security headers, who may ask, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from placement_api.problems import Problem, for_people, from_database
from placement_api.rates import Rates, whose
from placement_api.settings import Limits, is_loopback
from placement_api.store.database import AWAY
from placement_api.tokens import ANYONE, COOKIE, Caller, Tokens

DRAIN_S = 5.0  # how long the rest of a body is read, and thrown away, before it is refused
UPLOADS = ("/v1/traces", "/traces")
EITHER = "/v1/placements"  # takes a trace in the body, or the id of one
FREE_PATHS = ("/healthz", "/readyz")  # whoever asks, and however often
OPEN_PATHS = ("/docs", "/openapi.json", "/login")  # and /static/
NO_STORE = (b"cache-control", b"no-store")
NOWHERE = urlsplit("")
HSTS = (b"strict-transport-security", b"max-age=31536000")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with no-referrer browsers send forms with "Origin: null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "script-src 'self'; connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
}
_RAW_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]


class Guard:
    """Refuses bodies that are too long, and, where anyone may ask, browsers that another site sent.

    People are told so on a page, of `explain`.
    """

    def __init__(self, app: ASGIApp, *, limits: Limits, explain: Callable[[Problem], Response]) -> None:
        self.app = app
        self.limits = limits
        self.explain = explain
        self.strangers = Rates(per_s=limits.strangers_per_s)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        form = headers.get("content-type", "").startswith("multipart/form-data")
        upload = scope["path"] in UPLOADS or (form and scope["path"] == EITHER)
        most = self.limits.upload_bytes if upload else self.limits.body_bytes
        sent = over = False
        more = True  # of the body is still to come

        async def guarded_send(message: Message) -> None:
            nonlocal sent, more
            if over and not sent:  # whoever read the body says that it is malformed; what is right comes below
                return
            if message["type"] == "http.response.start":
                if more and message["status"] >= 400 and message["status"] != 408 and "expect" not in headers:
                    with suppress(TimeoutError):  # who is still sending might never read the answer
                        await asyncio.wait_for(_drain(receive), DRAIN_S)
                    more = False
                sent = True
                tls, private = scope.get("scheme") == "https", scope["path"].startswith("/v1")
                message["headers"] = secured(message.get("headers", []), tls=tls, private=private)
            await send(message)

        received = 0

        async def counted_receive() -> Message:
            nonlocal received, over, more
            try:  # silent within the body, which lies on our disk; after it, silence is a client that waits
                async with asyncio.timeout(self.limits.stall_s if more else None):
                    message = await receive()
            except TimeoutError:
                silent = f"nothing of the body came for {self.limits.stall_s:g} s"
                raise Problem(408, silent, "send it again, without a pause") from None
            more = more and message.get("more_body", False)
            if message["type"] == "http.request":
                received += len(message.get("body", b""))
                if received > most:
                    over = True
                    raise self._too_long(most)
            return message

        try:
            length = headers.get("content-length", "0")
            if length.isdecimal() and int(length) > most:
                raise self._too_long(most)
            # before the body is read: strangers cannot make us read it
            if scope["path"] in OPEN_PATHS or scope["path"].startswith("/static/"):
                if not _tokens(scope).vouches(_authorization(scope, headers)):
                    self._check_stranger(scope)
                if scope["method"] == "POST":
                    _check_origin(headers.get("host"), headers.get("origin"))
            elif scope["path"] not in FREE_PATHS:
                scope.setdefault("state", {})["caller"] = await self._caller(scope, headers)
            await self.app(scope, counted_receive, guarded_send)
            if over and not sent:
                raise self._too_long(most)
        except (Problem, *AWAY) as error:
            if sent:
                raise
            problem = error if isinstance(error, Problem) else from_database(error)
            over = False
            if problem.status == 401 and "text/html" in headers.get("accept", ""):
                await RedirectResponse("/login", status_code=303)(scope, receive, guarded_send)
                return
            answer = self.explain(problem) if for_people(headers, scope["path"]) else problem.response()
            await answer(scope, receive, guarded_send)

    async def _caller(self, scope: Scope, headers: Headers) -> Caller:
        tokens, authorization = _tokens(scope), _authorization(scope, headers)
        if authorization != headers.get("authorization"):
            _check_origin(headers.get("host"), headers.get("origin"))
        stranger = (
            None if tokens.vouches(authorization) else self._check_stranger(scope)
        )  # before the database is asked
        caller = await tokens.caller(authorization)
        if stranger is not None:
            self.strangers.spend(stranger, -1.0)
        if caller.id == ANYONE:
            check_site(headers.get("host"), headers.get("origin"))
        tokens.check(caller)
        return caller

    def _check_stranger(self, scope: Scope) -> str:
        """Count a request of an address that nobody vouches for; its name. Raises Problem (429)."""
        address = whose((scope.get("client") or ("",))[0])
        if self.strangers.left(address) < 0.0:
            what = f"more than {self.strangers.per_s:g} requests a second without a token that is known"
            raise Problem(429, what, "wait a second", Retry_After="1")
        self.strangers.spend(address, 1.0)
        return address

    def _too_long(self, most: int) -> Problem:
        return Problem(413, f"the body is longer than {most} bytes", "send less, or register a trace by path")


def _tokens(scope: Scope) -> Tokens:
    tokens: Tokens = scope["app"].state.service.tokens
    return tokens


def _authorization(scope: Scope, headers: Headers) -> str | None:
    """The header, or what it would be for the token of the page's cookie."""
    given = headers.get("authorization")
    cookie = Request(scope).cookies.get(COOKIE) if given is None and "cookie" in headers else None
    return given if cookie is None else f"Bearer {cookie}"


def secured(headers: Iterable[tuple[bytes, bytes]], *, tls: bool, private: bool) -> list[tuple[bytes, bytes]]:
    """Headers of an answer with those that hold for all; `private`: it is kept by nobody unless it says otherwise."""
    given = list(headers)
    names = {name for name, _ in given}
    given += [header for header in _RAW_HEADERS if header[0] not in names]
    if tls:
        given.append(HSTS)
    if private and b"cache-control" not in names:
        given.append(NO_STORE)
    return given


def check_site(host: str | None, origin: str | None) -> None:
    """Neither a name that leads to 127.0.0.1 nor another site's page reaches a service that asks nobody for a token.

    Raises Problem.
    """
    name = _address(f"//{host or ''}").hostname
    if name is None or not is_loopback(name):
        raise Problem(
            421, f"host {(host or '')[:100]!r} is not this machine", "ask http://127.0.0.1 or http://localhost"
        )
    _check_origin(host, origin)


def _address(written: str) -> SplitResult:
    """What cannot be an address, as a bracket without an end, is one without a host."""
    try:
        found = urlsplit(written)
        found.hostname  # noqa: B018 - which is looked at here first
    except ValueError:
        return NOWHERE
    return found


def _check_origin(host: str | None, origin: str | None) -> None:
    """Raise Problem (403) where a browser says that the page of another site sent it."""
    if origin is not None and _address(origin).netloc != host:
        raise Problem(403, f"origin {origin[:100]!r} is another site", "ask from the page of this service")


async def _drain(receive: Receive) -> None:
    while (await receive()).get("more_body", False):
        pass
