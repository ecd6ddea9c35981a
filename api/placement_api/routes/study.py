"""`/v1/study`: how traces route, and what grouping of requests and maps by domain can gain."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from placement_api.bodies import StudyBody
from placement_api.checks import check_study
from placement_api.description import answers
from placement_api.problems import faults
from placement_api.routes import Here, Reader
from placement_api.routes.jobs import answered_file
from placement_api.routes.json_bodies import BodyRoute
from placement_api.routes.submit import SUBMITS, Ask, inputs
from placement_api.service import Service

router = APIRouter(prefix="/v1", tags=["studies"], route_class=BodyRoute)


@router.post("/study", **SUBMITS)
async def study(ask: Ask, body: StudyBody) -> Response:
    """Study the traces: `placement traces info --study --json`."""
    return await ask.job("study", lambda: request_of(ask.here, body))


@router.get("/jobs/{job}/study", responses={**answers("application/json"), **faults(404, 409)}, response_class=Response)
def found(here: Here, _: Reader, job: str) -> Response:
    """What `POST /v1/study` found: schema trace-study/1 under `study`."""
    return answered_file(here, job, "study")


@router.get("/jobs/{job}/study/page", responses={**answers("text/html"), **faults(404, 409)}, response_class=Response)
def study_page(here: Here, _: Reader, job: str) -> Response:
    """The same as a page: self-contained, nothing fetched."""
    return answered_file(here, job, "page", "text/html; charset=utf-8")


def request_of(here: Service, body: StudyBody) -> dict[str, Any]:
    request = body.model_dump()
    check_study(request, inputs(here, request["traces"]))
    return request
