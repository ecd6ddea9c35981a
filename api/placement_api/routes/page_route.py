"""Routes of pages for people: what goes wrong is said on a page."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from placement.errors import PlacementError
from placement_api.pages.render import VISITOR, page
from placement_api.problems import Problem, from_library
from placement_api.tokens import ANYONE, COOKIE


class PageRoute(APIRoute):
    """What goes wrong is said on a page."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def answer_or_explain(request: Request) -> Response:
            caller = getattr(request.state, "caller", None)
            by_cookie = COOKIE in request.cookies and "authorization" not in request.headers
            VISITOR.set(caller.name if caller is not None and caller.id != ANYONE and by_cookie else "")
            try:
                return await answer(request)
            except (Problem, PlacementError) as error:
                body = as_problem(error).body
                return page("error", status=body.status, problem=body)

        return answer_or_explain


def as_problem(error: Problem | PlacementError) -> Problem:
    return error if isinstance(error, Problem) else from_library(error)
