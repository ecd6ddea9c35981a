"""`/v1/placements`: solve, get, list, delete; formats, report."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from placement.documents.placement import load_placement
from placement.exporters import EXPORTERS, get_exporter
from placement.exporters.base import ExportOptions
from placement_api.answers import PlacementAnswer
from placement_api.bodies import EvaluateBody, PlacementBody
from placement_api.checks import check_evaluate, check_solve
from placement_api.description import PLACEMENT, answers
from placement_api.problems import Problem, faults, missing
from placement_api.routes import Frequent, Here, Reader, Solver
from placement_api.routes.jobs import file_of, forget
from placement_api.routes.one_call import FORM, OneCallRoute
from placement_api.routes.submit import ACCEPTED, SUBMITS, Ask, inputs, kept
from placement_api.routes.traces import add
from placement_api.service import Service
from placement_api.store.tables import DONE, JobRow
from placement_api.store.traces import Taken
from placement_api.stored import Stored
from placement_api.tokens import Caller

router = APIRouter(prefix="/v1/placements", tags=["placements"], route_class=OneCallRoute)

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "It is as `If-None-Match` has it"}}


@router.post(
    "",
    **SUBMITS | {"responses": {**ACCEPTED, **answers("application/json", schema=PLACEMENT)}},
    openapi_extra={"requestBody": {"content": {"multipart/form-data": FORM}}},
)
async def solve(ask: Ask, body: PlacementBody) -> Response:
    """Place the experts: `placement solve`. The same request twice is one job.

    As multipart/form-data the trace comes along: what `POST /v1/traces` takes, and this request as the part `request`.
    `Link` leads to the trace.
    """
    return await ask.job("solve", lambda: request_of(ask.here, ask.caller, body))


@router.post("/{placement}/evaluate", **SUBMITS)
async def evaluate(ask: Ask, placement: str, body: EvaluateBody) -> Response:
    """Measure it on other traces, exactly and on every token."""
    return await ask.job("evaluate", lambda: _evaluation(ask.here, placement, body))


@router.get("", responses=faults())
def list_placements(
    here: Here,
    _: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> list[PlacementAnswer]:
    """The placements, newest first."""
    return [PlacementAnswer.of(row) for row in rows(here, limit=limit, offset=offset)]


@router.get(
    "/{placement}",
    responses={
        **answers("application/json", "application/octet-stream", schema={"anyOf": [PLACEMENT, {}]}),
        **NOT_MODIFIED,
        **faults(404, 409),
    },
    response_class=Response,
)
async def get_placement(
    here: Here,
    _: Frequent,
    request: Request,
    placement: str,
    format: Annotated[str | None, Query(description=f"As an engine loads it: {', '.join(EXPORTERS)}")] = None,
    suffix: Annotated[str, Query(max_length=20, description="Ending of the file, where a format has several")] = "",
) -> Response:
    """The placement file, schema expert-placement/1; or the file that an engine loads."""
    if format is None:
        return await stored_file(here, request, placement, "placement")
    return await run_in_threadpool(_exported, here, placement, format, suffix)


@router.get("/{placement}/hints", responses=faults(404, 409))
def hints(here: Here, _: Reader, placement: str, format: Annotated[str, Query(examples=["sglang"])]) -> list[str]:
    """How to start the engine with the file of `?format=`; FILE stands for its path."""
    row = find_placement(here, placement)
    loaded, _file = load_placement(here.blobs.path(file_of(row, "placement")))
    return list(get_exporter(format).export(loaded, ExportOptions()).hints)


@router.get(
    "/{placement}/report",
    responses={**answers("text/html"), **NOT_MODIFIED, **faults(404, 409)},
    response_class=Response,
)
async def report(here: Here, _: Frequent, request: Request, placement: str) -> Response:
    """The HTML report: self-contained, nothing fetched."""
    return await stored_file(here, request, placement, "report")


@router.delete("/{placement}", status_code=204, responses=faults(404, 409))
async def delete_placement(here: Here, caller: Solver, placement: str) -> Response:
    """Delete a placement; retention removes its files."""
    row = await run_in_threadpool(find_placement, here, placement)
    caller.check_owns(row.caller, "placement")
    await run_in_threadpool(forget, here, row)
    here.recent.forget(placement)
    return Response(status_code=204)


def file_name(placement: str, suffix: str) -> str:
    return f"placement-{placement[:8]}{suffix}"


async def stored_file(here: Service, request: Request, placement: str, name: str) -> Response:
    """A file of a placement, from memory if it was asked for before. Raises Problem (404, 409)."""
    row = await recent_placement(here, placement)
    return await Stored.asked(request.headers, name, file_of(row, name)).read(here.recent)


async def recent_placement(here: Service, placement: str) -> JobRow:
    """As `find_placement`, from what was known less than a second ago."""
    row = await here.recent.row(placement)
    return row if row is not None else await run_in_threadpool(find_placement, here, placement)


def find_placement(here: Service, placement: str) -> JobRow:
    """The done job of a placement. Raises Problem (404, 409)."""
    with here.database.reading() as session:
        row = session.get(JobRow, placement)
    if row is None or row.kind != "solve":
        raise missing("placement", placement)
    file_of(row, "placement")
    return row


def rows(here: Service, *, limit: int, offset: int = 0) -> list[JobRow]:
    """The jobs that made placements, newest first."""
    wanted = select(JobRow).where(JobRow.state == DONE, JobRow.kind == "solve")
    with here.database.reading() as session:
        return list(session.scalars(wanted.order_by(JobRow.created.desc(), JobRow.id).limit(limit).offset(offset)))


def request_of(here: Service, caller: Caller, body: PlacementBody) -> dict[str, Any]:
    """The body as it is kept: checked as far as can be without solving, counts made a trace. Raises Problem."""
    request = body.model_dump(exclude={"counts"})
    if (body.counts is None) == (not body.traces):
        raise Problem(422, "the body has both traces and counts, or neither", "give ids in traces, or counts")
    if body.counts is not None:
        row = here.traces.take_counts(**body.counts.model_dump())
        request["traces"] = [add(here, caller, Taken(row=row)).id]
    check(here, request)
    return kept(request)


def check(here: Service, request: dict[str, Any]) -> None:
    """Raise Problem (404, 409, 422) for a solve that cannot be done."""
    traces = inputs(here, request["traces"])
    current = None if request["current"] is None else find_placement(here, request["current"])
    check_solve(request, traces, current, here.settings.limits)


def _evaluation(here: Service, placement: str, body: EvaluateBody) -> dict[str, Any]:
    """The body as it is kept, checked as far as can be without measuring. Raises Problem."""
    request = body.model_dump() | {"placement": placement}
    traces = inputs(here, request["traces"])
    check_evaluate(request, traces, find_placement(here, placement))
    return request


def _exported(here: Service, placement: str, format: str, suffix: str) -> Response:
    row = find_placement(here, placement)
    exporter = get_exporter(format)
    suffix = suffix or exporter.suffixes[0]
    if suffix not in exporter.suffixes:
        raise Problem(422, f"suffix={suffix!r} is unknown", f"{format} writes {' or '.join(exporter.suffixes)}")
    loaded, _file = load_placement(here.blobs.path(file_of(row, "placement")))
    export = exporter.export(loaded, ExportOptions(suffix=suffix))
    headers = {"Content-Disposition": f'attachment; filename="{file_name(row.id, suffix)}"'}
    media = "application/json" if suffix == ".json" else "application/octet-stream"
    return Response(export.content, media_type=media, headers=headers)
