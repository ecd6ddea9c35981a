"""What is done with a placement: the way to another, homes for requests, micro-batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from placement.core.cluster import Cluster
from placement.core.migration import MigrationPlan, check_fits, migration_plan
from placement.documents.document import json_bytes
from placement.documents.placement import load_placement
from placement.errors import InputError
from placement.grouping.router import Router
from placement_api.bodies import Body, ManyRows, Rows
from placement_api.description import answers
from placement_api.problems import Problem, faults
from placement_api.routes import Frequent, Here, Reader
from placement_api.routes.jobs import file_of
from placement_api.routes.json_bodies import BodyRoute
from placement_api.routes.placements import NOT_MODIFIED, find_placement, recent_placement, stored_file
from placement_api.service import Service

router = APIRouter(prefix="/v1/placements/{placement}", tags=["placements"], route_class=BodyRoute)


ROUTE_EXAMPLES: list[Any] = [
    {"prompt": [200006, 17360, 200008], "labels": {"domain": "code"}, "load": [900, 450]},
    {"counts": [[5, 1, 0, 0]], "session": {"node": 1, "tokens": 1200}},
]


class SessionBody(Body):
    """Where the turns before ran: their keys and values are there."""

    node: int = Field(ge=0, lt=2**31)
    tokens: float = Field(ge=0, lt=2**53, description="Tokens of the request's prompt that the node has already")


class RouteBody(Body):
    """Whatever is known of a request; nothing at all is allowed, and gives the least loaded node."""

    model_config = ConfigDict(json_schema_extra={"examples": ROUTE_EXAMPLES})

    counts: Rows | None = Field(
        default=None, description="[layers][experts]: how often the request's tokens visited each expert so far"
    )
    load: list[float] | None = Field(default=None, description="Tokens that each node has now; null: the best is taken")
    prompt: list[int] | None = Field(default=None, max_length=1 << 20, description="Ids of the tokens of its prompt")
    labels: dict[str, str] | None = Field(default=None, max_length=100, description="Such as its domain or tenant")
    session: SessionBody | None = None


class RouteAnswer(BaseModel):
    node: int = Field(description="Home node")
    why: str = Field(
        description="What the sends were told from: prompt, labels, counts and prefix, joined by +; or load"
    )
    extra_sends: list[float] = Field(description="By node: sends per token and layer more than from the best")


class GroupsBody(Body):
    model_config = ConfigDict(json_schema_extra={"examples": [{"batch": [[[5, 1, 0, 0]], [[0, 0, 4, 2]]], "size": 1}]})

    batch: ManyRows = Field(max_length=10_000, description="Counts of every request, as of /route")
    size: int = Field(ge=1, le=1_000_000, description="Requests of a micro-batch")


class GroupAnswer(BaseModel):
    node: int
    members: list[int] = Field(description="Places in the batch")


@router.get("/diff", responses={**answers("application/json"), **faults(404, 409)}, response_class=Response)
def diff(
    here: Here, _: Reader, placement: str, to: Annotated[str, Query(description="Id of the placement that replaces it")]
) -> Response:
    """The copies that lead from this placement to another: `placement diff`, schema expert-migration/1."""
    return Response(json_bytes(plan_of(here, placement, to).document(), "copies"), media_type="application/json")


@router.post("/route", responses=faults(404, 409), response_model=RouteAnswer)
async def route(here: Here, _: Frequent, placement: str, body: RouteBody) -> Response:
    """The home node of a request, by the online router of a placement that was solved with `group`."""
    return routed(await _router(here, placement), body)


@router.post("/group", responses=faults(404, 409))
async def group(here: Here, _: Reader, placement: str, body: GroupsBody) -> list[GroupAnswer]:
    """Micro-batches of a batch of requests, with the fewest expected sends."""
    known = await _router(here, placement)
    return await run_in_threadpool(lambda: grouped(known, body))


@router.get(
    "/grouping",
    responses={**answers("application/json"), **NOT_MODIFIED, **faults(404, 409)},
    response_class=Response,
)
async def grouping(here: Here, _: Frequent, request: Request, placement: str) -> Response:
    """Homes of the requests of the trace, and the router: schema expert-grouping/2."""
    return await stored_file(here, request, placement, "grouping")


def routed(known: Router, body: RouteBody) -> Response:
    """A `RouteAnswer`. Raises InputError."""
    counts = None if body.counts is None else _counts(body.counts)
    home = known.assign(
        counts, body.load, prompt=body.prompt, labels=body.labels, cached=_cached(known.num_nodes, body.session)
    )
    extra_sends = [round(one, 6) for one in home.extra_N.tolist()]
    content = json.dumps({"node": home.node, "why": home.why, "extra_sends": extra_sends})
    return Response(content, media_type="application/json")


def grouped(known: Router, body: GroupsBody) -> list[GroupAnswer]:
    """Raises InputError."""
    groups = known.group([_counts(one) for one in body.batch], body.size)
    return [GroupAnswer(node=one.node, members=list(one.members)) for one in groups]


def plan_of(here: Service, placement: str, to: str) -> MigrationPlan:
    """The copies from one placement to another. Raises Problem, MapError."""
    old_map, old_file = load_placement(_path(here, placement))
    new_map, new_file = load_placement(_path(here, to))
    described = new_file.described_cluster() or old_file.described_cluster() or Cluster(**new_file.cluster.sizes())
    check_fits(old_map, new_map.model, described)
    return migration_plan(old_map, new_map, described)


def _path(here: Service, placement: str) -> Path:
    return here.blobs.path(file_of(find_placement(here, placement), "placement"))


async def _router(here: Service, placement: str) -> Router:
    row = await recent_placement(here, placement)
    if "grouping" not in row.files:
        raise Problem(409, f"placement {row.id} has no router", 'solve with "group": {}')
    return await here.recent.router(file_of(row, "grouping"))


def _cached(num_nodes: int, session: SessionBody | None) -> npt.NDArray[np.float64] | None:
    if session is None:
        return None
    if session.node >= num_nodes:
        raise InputError(f"session.node={session.node} is no node; nodes from 0 to {num_nodes - 1} are there")
    cached_N = np.zeros(num_nodes)
    cached_N[session.node] = session.tokens
    return cached_N


def _counts(rows: Rows) -> npt.NDArray[np.float64]:
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError:
        raise InputError("counts have rows of different lengths; give [layers][experts]") from None
