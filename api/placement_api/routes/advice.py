"""`/v1/advice`: what placing experts brings on a cluster, and with which settings."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from placement_api.bodies import AdviseBody
from placement_api.description import answers
from placement_api.problems import faults
from placement_api.routes import Here, Reader
from placement_api.routes.jobs import answered_file
from placement_api.routes.json_bodies import BodyRoute
from placement_api.routes.placements import check
from placement_api.routes.submit import SUBMITS, Ask, as_solve, kept
from placement_api.service import Service

router = APIRouter(prefix="/v1", tags=["advice"], route_class=BodyRoute)


@router.post("/advice", **SUBMITS)
async def advise(ask: Ask, body: AdviseBody) -> Response:
    """Say what placing the experts brings, and with which settings: `placement advise --json`."""
    return await ask.job("advise", lambda: request_of(ask.here, body))


@router.get(
    "/jobs/{job}/advice", responses={**answers("application/json"), **faults(404, 409)}, response_class=Response
)
def advice(here: Here, _: Reader, job: str) -> Response:
    """What `POST /v1/advice` found: schema expert-advice/1."""
    return answered_file(here, job, "advice")


@router.get("/jobs/{job}/advice/page", responses={**answers("text/html"), **faults(404, 409)}, response_class=Response)
def advice_page(here: Here, _: Reader, job: str) -> Response:
    """The same as a page: self-contained, nothing fetched."""
    return answered_file(here, job, "page", "text/html; charset=utf-8")


def request_of(here: Service, body: AdviseBody) -> dict[str, Any]:
    """The body as it is kept, checked as a solve of it would be. Raises Problem."""
    request = as_solve(body)
    check(here, request)
    return kept(request)
