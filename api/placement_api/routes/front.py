"""`/v1/front`: a placement for every price of imbalance."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from placement_api.bodies import FrontBody
from placement_api.checks import check_front_of
from placement_api.description import PLACEMENT, answers
from placement_api.problems import Problem, faults
from placement_api.routes import Here, Reader
from placement_api.routes.jobs import file_of, find
from placement_api.routes.json_bodies import BodyRoute
from placement_api.routes.submit import SUBMITS, Ask, as_solve, inputs, kept
from placement_api.service import Service
from placement_api.store.tables import JobRow

router = APIRouter(prefix="/v1", tags=["fronts"], route_class=BodyRoute)
OTHERS = ("front", "plot")  # files of such a job that are no maps


@router.post("/front", **SUBMITS)
async def front(ask: Ask, body: FrontBody) -> Response:
    """Find the whole front of sends against imbalance: `placement front`."""
    return await ask.job("front", lambda: request_of(ask.here, body))


@router.get("/jobs/{job}/front", responses={**answers("application/json"), **faults(404, 409)}, response_class=Response)
def found(here: Here, _: Reader, job: str) -> Response:
    """What `POST /v1/front` found, `front.json`: schema expert-front/1."""
    return Response(here.blobs.get(_file(here, job, "front")), media_type="application/json")


@router.get(
    "/jobs/{job}/front/plot", responses={**answers("image/svg+xml"), **faults(404, 409)}, response_class=Response
)
def plot(here: Here, _: Reader, job: str) -> Response:
    """Sends against imbalance, as a picture."""
    return Response(here.blobs.get(_file(here, job, "plot")), media_type="image/svg+xml")


@router.get(
    "/jobs/{job}/front/maps/{file}",
    responses={**answers("application/json", schema=PLACEMENT), **faults(404, 409)},
    response_class=Response,
)
def one_map(here: Here, _: Reader, job: str, file: str) -> Response:
    """The placement file of a point, by the name that the front has for it: schema expert-placement/1."""
    digest = _file(here, job, file)
    if file in OTHERS:
        raise Problem(404, f"job {job[:80]!r} has no map {file!r}", "take a name under file of GET /v1/jobs/{id}/front")
    return Response(here.blobs.get(digest), media_type="application/json")


def _file(here: Service, job: str, name: str) -> str:
    """The digest of a file of a front. Raises Problem (404, 409)."""
    return file_of(find_front(here, job), name)


def find_front(here: Service, job: str) -> JobRow:
    """The job of a front. Raises Problem (404)."""
    row = find(here, job)
    if row.kind != "front":
        raise Problem(404, f"job {row.id} made no front", "ask for one with POST /v1/front")
    return row


def request_of(here: Service, body: FrontBody) -> dict[str, Any]:
    request = as_solve(body)
    check_front_of(request, inputs(here, request["traces"]), here.settings.limits)
    return kept(request)
