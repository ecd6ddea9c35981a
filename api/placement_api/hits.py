"""What is asked most, answered from memory before the framework sees it.

The routes say the same and remember what they read: whatever is not known here at once, or not right, goes on to them.
"""

from __future__ import annotations

from types import SimpleNamespace

from fastapi import Response
from pydantic import ValidationError
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from placement.errors import PlacementError
from placement_api.routes.maps import RouteBody, routed
from placement_api.service import Service
from placement_api.store.tables import JobRow
from placement_api.stored import Stored
from placement_api.tokens import FROM_MEMORY

PREFIX = "/v1/placements/"
LONGEST_BODY = 1 << 18
_FILES = {"": "placement", "/report": "report", "/grouping": "grouping"}  # by the end of the path


class Hits:
    """Behind `Guard`, which says who asks."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PREFIX) and not scope["query_string"]:
            here: Service = scope["app"].state.service
            placement = scope["path"][len(PREFIX) :].partition("/")[0]
            end = scope["path"][len(PREFIX) + len(placement) :]
            row = here.recent.known_row(placement)
            answer = None
            if row is not None and scope["method"] == "GET" and end in _FILES:
                answer = _file(here, row, _FILES[end], Headers(scope=scope))
            elif row is not None and scope["method"] == "POST" and end == "/route":
                body = await _begin(receive)
                receive = _again(body, receive)
                answer = _route(here, row, body, Headers(scope=scope))
            if answer is not None:
                here.tokens.spend(scope["state"]["caller"], FROM_MEMORY)
                scope["route"] = SimpleNamespace(path=f"{PREFIX}{{placement}}{end}")
                await answer(scope, receive, send)
                return
        await self.app(scope, receive, send)


def _file(here: Service, row: JobRow, name: str, headers: Headers) -> Response | None:
    if name not in row.files:
        return None
    return Stored.of(headers, name, row.files[name]).from_memory(here.recent)


def _route(here: Service, row: JobRow, body: list[Message], headers: Headers) -> Response | None:
    router = here.recent.known_router(row.files.get("grouping", ""))
    if router is None or body[-1].get("more_body"):
        return None
    if not headers.get("content-type", "").startswith("application/json"):
        return None
    try:
        content = b"".join(message.get("body", b"") for message in body)
        return routed(router, RouteBody.model_validate_json(content))
    except (ValidationError, PlacementError):
        return None


async def _begin(receive: Receive) -> list[Message]:
    """The messages of a body, all of them unless it is long."""
    messages = [await receive()]
    while messages[-1].get("more_body") and sum(len(one["body"]) for one in messages) < LONGEST_BODY:
        messages.append(await receive())
    return messages


def _again(messages: list[Message], receive: Receive) -> Receive:
    """Receives these once more, then what follows."""
    left = messages[::-1]

    async def again() -> Message:
        return left.pop() if left else await receive()

    return again
