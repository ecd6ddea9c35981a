"""Routes of pages for people, and their forms: what goes wrong is said on a page."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from placement.errors import PlacementError
from placement_api.pages.render import VISITOR, page
from placement_api.problems import Problem, from_library
from placement_api.tokens import ANYONE, COOKIE

Model = TypeVar("Model", bound=BaseModel)
MOST_FIELDS = 40


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


async def form_values(request: Request, most: int | None = None) -> dict[str, str]:
    """What a form without files was filled in with; of each value no more than `most` letters."""
    async with request.form(max_files=0, max_fields=MOST_FIELDS) as form:
        return {name: str(value).strip()[:most] for name, value in form.items()}


def checked(model: type[Model], values: dict[str, Any]) -> Model:
    """A body of a form's values. Raises Problem (422), which names the first that is wrong."""
    try:
        return model.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        raise Problem(422, f"{fault['loc'][-1]}: {fault['msg']}", "change this value") from None
