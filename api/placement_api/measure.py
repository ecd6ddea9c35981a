"""Every answer named, counted and timed; what changed something, or was refused, is written to the audit log."""

from __future__ import annotations

import logging
import re
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from placement_api.logs import ACCESS, AUDIT, line_of
from placement_api.metrics import Metrics
from placement_api.tokens import Caller

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")  # of others there may be any number
READS = ("GET", "HEAD", "OPTIONS")
ASKED = ("/route", "/group")  # ends of routes that are asked by POST and change nothing
HEALTH = ("/healthz", "/readyz", "/metrics")
REFUSED = (401, 403)
GIVEN = re.compile(rb"[A-Za-z0-9._:-]{1,64}")
NAME = b"x-request-id"


class Measure:
    """Around everything else, so that refusals are counted too.

    An answer has the `X-Request-Id` of its request, or a new one; so has its line in the logs.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # whoever speaks HTTP for us sends no body
            scope = {**scope, "method": "GET"}
        began = time.perf_counter()
        status = 500
        location = ""
        name = name_of(*(value for key, value in scope["headers"] if key == NAME))

        async def noted_send(message: Message) -> None:
            nonlocal status, location
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = message.setdefault("headers", [])
                for key, value in headers:
                    if key == b"location":
                        location = value.decode("latin-1")
                headers.append((NAME, name))
            await send(message)

        try:
            await self.app(scope, receive, noted_send)
        finally:
            seconds = time.perf_counter() - began
            method = scope["method"] if scope["method"] in METHODS else "other"
            route = getattr(scope.get("route"), "path", None)
            metrics: Metrics = scope["app"].state.service.metrics
            metrics.answered(method, route or "none", status, seconds)
            self._note(scope, status, seconds, location, name.decode())

    def _note(self, scope: Scope, status: int, seconds: float, location: str, name: str) -> None:
        """The line of a request: who did what to which id, and how that went."""
        changes = scope["method"] not in READS and not scope["path"].endswith(ASKED)
        caller: Caller | None = scope.get("state", {}).get("caller")
        audited = status in REFUSED or (changes and caller is not None and status not in (404, 429))
        if not audited and (not ACCESS.isEnabledFor(logging.INFO) or scope["path"] in HEALTH):
            return
        access_line(
            seconds,
            scope["path"],
            audited=audited,
            caller=caller,
            client=(scope.get("client") or (None,))[0],
            method=scope["method"][:20],
            route=getattr(scope.get("route"), "path", None),
            status=status,
            id=location.rpartition("/")[2] or next(iter(scope.get("path_params", {}).values()), None),
            request=name,
        )


def name_of(*given: bytes | None) -> bytes:
    """The name of a request: the first that was given and is one, else a new one."""
    for one in given:
        if one is not None and GIVEN.fullmatch(one):
            return one
    return secrets.token_hex(8).encode()


def access_line(
    seconds: float, path: str, *, caller: Caller | None, client: str | None, audited: bool = False, **said: Any
) -> None:
    """Write the line of a request to the access log, or to the audit log."""
    kind, log = ("audit", AUDIT) if audited else ("access", ACCESS)
    who = {"caller": caller.id, "name": caller.name} if caller else {}
    log.info("%s", line_of(kind, seconds, path, **said, **who, **{"from": client}))
