"""`/v1/advice`: what placing experts brings on a cluster, and with which settings."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from placement_api.bodies import AdviseBody, options_of
from placement_api.description import answers
from placement_api.problems import faults
from placement_api.routes import Here, Reader, Solver
from placement_api.routes.jobs import file_of, find
from placement_api.routes.json_bodies import BodyRoute
from placement_api.routes.placements import ACCEPTED, Key, Wait, answer_of, check, check_wait
from placement_api.service import Service

router = APIRouter(prefix="/v1", tags=["advice"], route_class=BodyRoute)


@router.post(
    "/advice", responses={**ACCEPTED, **faults(404, 409, 500)}, response_class=JSONResponse, response_model=None
)
async def advise(
    here: Here, caller: Solver, body: AdviseBody, wait: Wait = 0.0, idempotency_key: Key = None
) -> Response:
    """Say what placing the experts brings, and with which settings: `placement advise --json`."""
    check_wait(here, wait)
    request = await run_in_threadpool(request_of, here, body)
    row = await run_in_threadpool(here.jobs.submit, "advise", request, caller=caller.id, key=idempotency_key)
    return await answer_of(here, row, wait, "advice")


@router.get(
    "/jobs/{job}/advice", responses={**answers("application/json"), **faults(404, 409)}, response_class=Response
)
def advice(here: Here, _: Reader, job: str) -> Response:
    """What `POST /v1/advice` found: schema expert-advice/1."""
    return Response(here.blobs.get(file_of(find(here, job), "advice")), media_type="application/json")


@router.get("/jobs/{job}/advice/page", responses={**answers("text/html"), **faults(404, 409)}, response_class=Response)
def advice_page(here: Here, _: Reader, job: str) -> Response:
    """The same as a page: self-contained, nothing fetched."""
    return Response(here.blobs.get(file_of(find(here, job), "page")), media_type="text/html; charset=utf-8")


def request_of(here: Service, body: AdviseBody) -> dict[str, Any]:
    """The body as it is kept, checked as a solve of it would be. Raises Problem."""
    request = body.model_dump() | {"robust": None, "current": None, "group": None}
    check(here, request)
    return request | {"options": asdict(options_of(request["options"]))}
