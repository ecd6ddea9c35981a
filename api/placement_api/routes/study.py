"""`/v1/study`: how traces route, and what grouping of requests and maps by domain can gain."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from placement_api.bodies import StudyBody
from placement_api.checks import check_study
from placement_api.description import answers
from placement_api.problems import faults
from placement_api.routes import Here, Reader, Solver
from placement_api.routes.jobs import file_of, find
from placement_api.routes.json_bodies import BodyRoute
from placement_api.routes.placements import ACCEPTED, Key, Wait, answer_of, check_wait, inputs
from placement_api.service import Service

router = APIRouter(prefix="/v1", tags=["studies"], route_class=BodyRoute)


@router.post(
    "/study", responses={**ACCEPTED, **faults(404, 409, 500)}, response_class=JSONResponse, response_model=None
)
async def study(here: Here, caller: Solver, body: StudyBody, wait: Wait = 0.0, idempotency_key: Key = None) -> Response:
    """Study the traces: `placement traces info --study --json`."""
    check_wait(here, wait)
    request = await run_in_threadpool(_request_of, here, body)
    row = await run_in_threadpool(here.jobs.submit, "study", request, caller=caller.id, key=idempotency_key)
    return await answer_of(here, row, wait, "study")


@router.get("/jobs/{job}/study", responses={**answers("application/json"), **faults(404, 409)}, response_class=Response)
def found(here: Here, _: Reader, job: str) -> Response:
    """What `POST /v1/study` found: schema trace-study/1 under `study`."""
    return Response(here.blobs.get(file_of(find(here, job), "study")), media_type="application/json")


@router.get("/jobs/{job}/study/page", responses={**answers("text/html"), **faults(404, 409)}, response_class=Response)
def study_page(here: Here, _: Reader, job: str) -> Response:
    """The same as a page: self-contained, nothing fetched."""
    return Response(here.blobs.get(file_of(find(here, job), "page")), media_type="text/html; charset=utf-8")


def _request_of(here: Service, body: StudyBody) -> dict[str, Any]:
    request = body.model_dump()
    check_study(request, inputs(here, request["traces"]))
    return request
