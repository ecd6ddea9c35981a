"""JSON that is sent is read beside the event loop: others are answered meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from email.message import Message
from typing import Any, TypeVar

from anyio import CapacityLimiter, to_thread
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError

from placement_api.problems import MOST_FAULTS, Problem

SMALL_BYTES = 1 << 16  # is read before another thread would begin
Model = TypeVar("Model", bound=BaseModel)
MOST = {b"[": ("lists", 100_000), b"{": ("objects", 10_000), b'"': ("quotes", 40_000), b",": ("commas", 500_000)}
READING = CapacityLimiter(1)  # large bodies that are read at a time


class _Read(Request):
    """A request whose body is read already: the framework takes a model that is right as it is for the body."""

    model: BaseModel | None = None

    async def body(self) -> Any:
        return await super().body() if self.model is None else self.model

    async def json(self) -> Any:
        return await super().json() if self.model is None else self.model


class BodyRoute(APIRoute):
    """A route whose body, if there is one, is a pydantic model of JSON."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        model = None if self.body_field is None else self.body_field.field_info.annotation
        if not isinstance(model, type) or not issubclass(model, BaseModel):
            return answer

        async def read_first(given: Request) -> Response:
            request = _Read(given.scope, given.receive)
            request.model = await self.read(request, model)
            return await answer(request)

        return read_first

    async def read(self, request: Request, model: type[BaseModel]) -> BaseModel | None:
        """The model of a body; None where it is no JSON. Raises RequestValidationError, Problem."""
        if not is_json(request.headers.get("content-type")):
            return None
        content = await request.body()
        if len(content) <= SMALL_BYTES:
            return model_of(model, content)
        return await to_thread.run_sync(model_of, model, content, limiter=READING)


def model_of(model: type[Model], content: bytes | str, *where: str) -> Model:
    """A body of JSON; `where` is its place in the request. Raises RequestValidationError, Problem."""
    if len(content) > SMALL_BYTES:
        _check_shape(content if isinstance(content, bytes) else content.encode())
    try:
        return model.model_validate_json(content)
    except ValidationError as error:
        place = where or ("body",)
        found = error.errors(include_url=False, include_input=False)[:MOST_FAULTS]
        raise RequestValidationError([{**one, "loc": (*place, *one["loc"])} for one in found]) from None


def _check_shape(content: bytes) -> None:
    """Raise Problem (422) for a body that would take long to read, for what it is made of."""
    for letter, (what, most) in MOST.items():
        if (found := content.count(letter)) > most:
            raise Problem(
                422, f"the body has {found} {what}", f"send at most {most}: counts as .npz, requests in parts"
            )


def is_json(content_type: str | None) -> bool:
    message = Message()
    message["content-type"] = content_type or ""
    subtype = message.get_content_subtype()
    return message.get_content_maintype() == "application" and (subtype == "json" or subtype.endswith("+json"))
