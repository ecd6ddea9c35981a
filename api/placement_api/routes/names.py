"""`/v1/names`: placements published under names, aliases that move from version to version, and their files."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from placement.documents.placement import PlacementFile, load_placement
from placement_api.answers import HeldAnswer, MoveAnswer, NameAnswer, NameDetail, VersionAnswer
from placement_api.bodies import MoveBody, PublishBody, RollbackBody
from placement_api.description import PLACEMENT, answers
from placement_api.problems import Problem, faults
from placement_api.routes import Frequent, Here, Promoter, Reader, Solver
from placement_api.routes.jobs import file_of
from placement_api.routes.json_bodies import BodyRoute
from placement_api.routes.placements import NOT_MODIFIED, find_placement
from placement_api.routes.submit import check_wait
from placement_api.service import Service
from placement_api.store.tables import MoveRow, TokenRow, VersionRow
from placement_api.stored import Stored

router = APIRouter(prefix="/v1/names", tags=["names"], route_class=BodyRoute)

LOOK_S = 1.0  # between looks at where an alias points


@router.get("", responses=faults())
def list_names(here: Here, _: Reader) -> list[NameAnswer]:
    """The names, and where their aliases point."""
    return [NameAnswer(name=name, latest=latest, aliases=held) for name, latest, held in here.names.all()]


@router.get(
    "/{name:path}@{word}/placement",
    responses={**answers("application/json", schema=PLACEMENT), **NOT_MODIFIED, **faults(404)},
    response_class=Response,
)
async def placement_of(here: Here, _: Frequent, request: Request, name: str, word: str) -> Response:
    """The placement file of a version or of an alias, schema expert-placement/1."""
    row, _move = await run_in_threadpool(here.names.resolve, name, word)
    return await Stored.asked(request.headers, "placement", row.digest).read(here.recent)


@router.get(
    "/{name:path}@{word}/grouping",
    responses={**answers("application/json"), **NOT_MODIFIED, **faults(404)},
    response_class=Response,
)
async def grouping_of(here: Here, _: Frequent, request: Request, name: str, word: str) -> Response:
    """The homes and the router of a version or of an alias, schema expert-grouping/2."""
    row, _move = await run_in_threadpool(here.names.resolve, name, word)
    if row.grouping is None:
        raise Problem(404, f"version {row.version} of {name} has no homes", "publish a placement solved with `group`")
    return await Stored.asked(request.headers, "grouping", row.grouping).read(here.recent)


@router.post("/{name:path}@{alias}/rollback", responses=faults(404, 409))
def roll_back(here: Here, caller: Promoter, name: str, alias: str, body: RollbackBody) -> MoveAnswer:
    """Point an alias at what was promoted before its version."""
    move = here.names.roll_back(name, alias, expect=body.expect, note=body.note, caller=caller.id)
    return _told(move, _callers(here))


@router.get("/{name:path}@{word}", responses=faults(404))
async def held(
    here: Here,
    _: Frequent,
    request: Request,
    name: str,
    word: str,
    after: Annotated[
        int | None, Query(ge=0, description="A move: the answer is kept back until the alias moved after it")
    ] = None,
    wait: Annotated[float, Query(ge=0, description="Seconds to keep it back at most", examples=[30])] = 0.0,
) -> HeldAnswer:
    """Where an alias points, or a version; with `after` and `wait` the answer comes when the alias moves."""
    check_wait(here, wait)
    end = time.monotonic() + wait
    row, move = await run_in_threadpool(here.names.resolve, name, word)
    while move is not None and move.id == after and (left := end - time.monotonic()) > 0:
        if await request.is_disconnected():
            break
        await asyncio.sleep(min(LOOK_S, left))
        row, move = await here.names.watched(name, word)
    told = _version_told(row, await run_in_threadpool(_callers, here))
    return HeldAnswer(
        **told.model_dump(), move=None if move is None else move.id, moved=None if move is None else move.moved
    )


@router.put("/{name:path}@{alias}", responses=faults(404, 409))
def promote(here: Here, caller: Promoter, name: str, alias: str, body: MoveBody) -> MoveAnswer:
    """Point an alias at a version."""
    move = here.names.promote(name, alias, body.version, expect=body.expect, note=body.note, caller=caller.id)
    return _told(move, _callers(here))


@router.delete("/{name:path}@{word}", status_code=204, responses=faults(404, 409))
def remove(here: Here, caller: Promoter, name: str, word: str) -> Response:
    """Remove an alias; or, by its number, a version that no alias has."""
    if word.isdecimal():
        here.names.delete(name, int(word[:18]))
    else:
        here.names.remove(name, word, caller=caller.id)
    return Response(status_code=204)


@router.get("/{name:path}", responses=faults(404))
def detail(here: Here, _: Reader, name: str) -> NameDetail:
    """Versions, aliases and history of a name."""
    versions, last, moves = here.names.of(name)
    callers = _callers(here)
    return NameDetail(
        name=name,
        latest=versions[0].version,
        aliases={move.alias: move.held[-1] for move in last},
        versions=[_version_told(row, callers) for row in versions],
        history=[_told(move, callers) for move in moves],
    )


@router.post(
    "/{name:path}",
    status_code=201,
    response_model=VersionAnswer,
    responses={
        200: {"model": VersionAnswer, "description": "The name has a version of these files"},
        **faults(404, 409),
    },
)
def publish(here: Here, caller: Solver, name: str, body: PublishBody) -> JSONResponse:
    """Publish a placement as the next version of a name; the same files twice are one version."""
    row, new = here.names.publish(_version_of(here, name, body, caller.id))
    told = _version_told(row, _callers(here))
    where = {"Location": f"/v1/names/{row.name}@{row.version}"}
    return JSONResponse(told.model_dump(mode="json"), status_code=201 if new else 200, headers=where)


def _version_of(here: Service, name: str, body: PublishBody, caller: str) -> VersionRow:
    """The row of a version that is not kept yet; its files are. Raises Problem, MapError."""
    if (body.placement is None) == (body.document is None):
        raise Problem(422, "the body has both a placement and a document, or neither", "give one of them")
    grouping, digest = None, ""
    if body.placement is not None:
        made = find_placement(here, body.placement)
        digest, grouping = file_of(made, "placement"), made.files.get("grouping")
        _map, file = load_placement(here.blobs.path(digest))
    else:
        content = json.dumps(body.document).encode()
        file = PlacementFile.load(content, "the document")
        file.placement()
        digest = here.blobs.put(PlacementFile.encode(file.document()))
    return VersionRow(
        name=name,
        version=0,
        digest=digest,
        grouping=grouping,
        shape=_shape_of(file),
        placement=body.placement or "",
        note=body.note,
        caller=caller,
        created=0.0,
    )


def _shape_of(file: PlacementFile) -> dict[str, Any]:
    """What a map must have in common with another that engines load in its place without another configuration."""
    model, cluster = file.model.model(), file.cluster
    return {
        "model": model.name,
        "layers": model.layers_said,
        "experts": model.num_experts,
        "top_k": model.top_k,
        "nodes": cluster.num_nodes,
        "gpus_per_node": cluster.gpus_per_node,
        "slots_per_gpu": cluster.slots_per_gpu,
        "engine": file.engine(),
    }


def _version_told(row: VersionRow, callers: dict[str, str]) -> VersionAnswer:
    return VersionAnswer(
        name=row.name,
        version=row.version,
        sha256=row.digest,
        grouping_sha256=row.grouping,
        shape=row.shape,
        placement=row.placement or None,
        note=row.note,
        by=callers.get(row.caller, row.caller),
        created=row.created,
    )


def _told(move: MoveRow, callers: dict[str, str]) -> MoveAnswer:
    return MoveAnswer(
        move=move.id,
        alias=move.alias,
        kind=move.kind,  # type: ignore[arg-type]
        before=move.before,
        version=move.held[-1] if move.held else None,
        note=move.note,
        by=callers.get(move.caller, move.caller),
        moved=move.moved,
    )


def _callers(here: Service) -> dict[str, str]:
    """Names of the tokens that there are, by id."""
    with here.database.reading() as session:
        return {id: name for id, name in session.execute(select(TokenRow.id, TokenRow.name))}
