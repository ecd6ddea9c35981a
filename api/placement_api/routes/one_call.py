"""`POST /v1/placements` with the trace in its body: uploaded as by `POST /v1/traces`, then solved as by its id."""

from __future__ import annotations

from typing import Any

from fastapi import Request
from pydantic import BaseModel
from starlette.datastructures import FormData

from placement_api.bodies import PlacementBody
from placement_api.problems import Problem
from placement_api.routes.json_bodies import BodyRoute, model_of
from placement_api.routes.traces import UPLOAD, taken_from
from placement_api.tokens import allow

FORM: dict[str, Any] = {
    "schema": {
        "type": "object",
        "required": ["file", "request"],
        "properties": {
            **UPLOAD["content"]["multipart/form-data"]["schema"]["properties"],
            "request": {
                "type": "string",
                "contentMediaType": "application/json",
                "description": "The body of JSON, without traces and counts",
                "examples": ['{"cluster": {"num_nodes": 4, "gpus_per_node": 2}}'],
            },
        },
    },
    "encoding": {"request": {"contentType": "application/json"}},
}


class OneCallRoute(BodyRoute):
    """A body of multipart/form-data becomes the model of JSON whose `traces` is the trace that came with it."""

    async def read(self, request: Request, model: type[BaseModel]) -> BaseModel | None:
        sent_along = request.headers.get("content-type", "").startswith("multipart/form-data")
        if not sent_along or model is not PlacementBody:
            return await super().read(request, model)
        caller = await allow("solve", price=0.0)(request)  # before anything is taken in
        async with request.form(max_files=2, max_fields=10) as form:
            most = request.app.state.service.settings.limits.body_bytes
            body = model_of(PlacementBody, await _text(form, most), "body", "request")
            if body.traces or body.counts is not None:
                raise Problem(422, "the request names traces or counts beside the file", "leave traces and counts out")
            taken = await taken_from(request.app.state.service, caller, form, "request")
        return body.model_copy(update={"traces": [taken.id]})


async def _text(form: FormData, most: int) -> bytes | str:
    """The part `request`, sent as a field or as a file. Raises Problem."""
    part = form.get("request")
    if part is None:
        raise Problem(
            422, "the part 'request' is missing", 'send the request as JSON, such as {"cluster": {"num_nodes": 4}}'
        )
    if isinstance(part, str):
        return part
    if (part.size or 0) > most:
        raise Problem(413, f"the part 'request' is longer than {most} bytes", "send the trace as the part 'file'")
    return await part.read()
