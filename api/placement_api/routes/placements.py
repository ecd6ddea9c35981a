"""`/v1/placements`: solve, get, list, delete; formats, report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from fastapi.responses import JSONResponse
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool

from placement.documents.placement import load_placement
from placement.exporters import EXPORTERS, get_exporter
from placement.exporters.base import ExportOptions
from placement_api.answers import JobAnswer, PlacementAnswer
from placement_api.bodies import EvaluateBody, PlacementBody, options_of
from placement_api.checks import check_evaluate, check_solve
from placement_api.description import PLACEMENT, answers
from placement_api.problems import MEDIA_TYPE, Problem, faults, missing
from placement_api.routes import Frequent, Here, Reader, Solver
from placement_api.routes.jobs import file_of, forget, wait_for
from placement_api.routes.one_call import FORM, OneCallRoute
from placement_api.routes.traces import add
from placement_api.service import Service
from placement_api.store.tables import DONE, FAILED, JobRow, TraceRow
from placement_api.store.traces import Taken
from placement_api.stored import Stored
from placement_api.tokens import Caller

router = APIRouter(prefix="/v1/placements", tags=["placements"], route_class=OneCallRoute)

LINKED = 20  # traces of a job: more than a header should hold
Wait = Annotated[float, Query(ge=0, description="Seconds to wait for the answer itself", examples=[30])]
Key = Annotated[str | None, Header(min_length=1, max_length=200, description="The same key twice is one job")]
ACCEPTED: dict[int | str, dict[str, Any]] = {
    **answers("application/json", what="Done in time: the answer itself"),
    202: {"model": JobAnswer, "description": "A job; `Location` is where it is"},
}
NOT_MODIFIED: dict[int | str, dict[str, Any]] = {304: {"description": "It is as `If-None-Match` has it"}}


@router.post(
    "",
    responses={**ACCEPTED, **answers("application/json", schema=PLACEMENT), **faults(404, 409, 500)},
    response_class=JSONResponse,
    response_model=None,
    openapi_extra={"requestBody": {"content": {"multipart/form-data": FORM}}},
)
async def solve(
    here: Here, caller: Solver, body: PlacementBody, wait: Wait = 0.0, idempotency_key: Key = None
) -> Response:
    """Place the experts: `placement solve`. The same request twice is one job.

    As multipart/form-data the trace comes along: what `POST /v1/traces` takes, and this request as the part `request`.
    `Link` leads to the trace.
    """
    check_wait(here, wait)
    request = await run_in_threadpool(request_of, here, caller, body)
    row = await run_in_threadpool(here.jobs.submit, "solve", request, caller=caller.id, key=idempotency_key)
    return await answer_of(here, row, wait, "placement")


@router.post(
    "/{placement}/evaluate",
    responses={**ACCEPTED, **faults(404, 409, 500)},
    response_class=JSONResponse,
    response_model=None,
)
async def evaluate(
    here: Here, caller: Solver, placement: str, body: EvaluateBody, wait: Wait = 0.0, idempotency_key: Key = None
) -> Response:
    """Measure it on other traces, exactly and on every token."""
    check_wait(here, wait)
    request = body.model_dump() | {"placement": placement}
    await run_in_threadpool(_check_evaluate, here, request)
    row = await run_in_threadpool(here.jobs.submit, "evaluate", request, caller=caller.id, key=idempotency_key)
    return await answer_of(here, row, wait, "evaluation")


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
    return request | {"options": asdict(options_of(request["options"]))}  # what an engine sets is told apart no more


def check(here: Service, request: dict[str, Any]) -> None:
    """Raise Problem (404, 409, 422) for a solve that cannot be done."""
    traces = inputs(here, request["traces"])
    current = None if request["current"] is None else find_placement(here, request["current"])
    check_solve(request, traces, current, here.settings.limits)


def _check_evaluate(here: Service, request: dict[str, Any]) -> None:
    traces = inputs(here, request["traces"])
    check_evaluate(request, traces, find_placement(here, request["placement"]))


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


def inputs(here: Service, traces: list[str]) -> list[TraceRow]:
    """The rows of traces. Raises Problem where one is missing (404), or was changed since it was registered (409)."""
    with here.database.reading() as session:
        found = {name: session.get(TraceRow, name) for name in traces}
    for name, row in found.items():
        if row is None:
            raise missing("trace", name)
        if row.source == "path":
            here.traces.path_of(row)
    return [row for row in found.values() if row is not None]


def check_wait(here: Service, wait: float) -> None:
    """Raise Problem (422) for a wait that is longer than allowed."""
    if wait > here.settings.limits.wait_s:
        raise Problem(
            422, f"wait={wait:g} is too long", f"wait at most {here.settings.limits.wait_s:g} s, then ask for the job"
        )


async def answer_of(here: Service, row: JobRow, wait: float, name: str) -> Response:
    """The file of this name if the job is done in time, its problem if it failed, else the job. Raises Problem."""
    row = await wait_for(here, row, wait)
    links = ", ".join(f'</v1/traces/{name}>; rel="via"' for name in row.request["traces"][:LINKED])
    where = {"Location": f"/v1/jobs/{row.id}", "Link": links}
    if wait and row.state == DONE:
        content = await run_in_threadpool(here.blobs.get, file_of(row, name))
        return Response(
            content, media_type="application/json", headers={"Content-Location": str(JobAnswer.of(row).result), **where}
        )
    if wait and row.state == FAILED and row.error is not None:
        return JSONResponse(row.error, status_code=row.error["status"], media_type=MEDIA_TYPE, headers=where)
    return JSONResponse(JobAnswer.of(row).model_dump(mode="json"), status_code=202, headers=where)
