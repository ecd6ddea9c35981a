"""`/traces/{id}`: the form of all that can be asked of a trace, and what was found of it; `/fronts/{id}`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from placement.errors import PlacementError
from placement_api.answers import TraceAnswer
from placement_api.bodies import AdviseBody, FrontBody, PlacementBody, StudyBody
from placement_api.pages.forms import CLUSTER, GROUP, MORE, MOVES, body_of, proposal, values_of
from placement_api.pages.front import front_rows
from placement_api.pages.looks import size, sought, wanted
from placement_api.pages.render import page
from placement_api.problems import Problem
from placement_api.routes import Here, Reader, Solver, advice, front, jobs, placements, study, traces
from placement_api.routes.page_route import PageRoute, as_problem, checked, form_values
from placement_api.service import Service
from placement_api.store.tables import JobRow, TraceRow
from placement_api.tokens import Caller

router = APIRouter(include_in_schema=False, route_class=PageRoute)
SHOWN, LOOKED_AT, LETTERS = 50, 1000, 200


@router.get("/traces/{trace}")
def trace_page(here: Here, _: Reader, trace: str, like: str | None = None, current: str | None = None) -> Response:
    row = traces.find(here, trace)
    values = proposal(row)
    if like is not None:
        job = jobs.find(here, like)
        values |= values_of(job.request, row.num_experts) if job.kind == "solve" else {}
    if current is not None:
        values |= {"current": placements.find_placement(here, current).id, "group": ""}
    return _trace(here, row, values)


@router.post("/traces/{trace}/solve")
@router.post("/traces/{trace}/advise")
@router.post("/traces/{trace}/front")
@router.post("/traces/{trace}/study")
async def ask(here: Here, solver: Solver, trace: str, request: Request) -> Response:
    """One form for all: what a kind of job does not take is left out, and so below."""
    kind = request.url.path.rpartition("/")[2]
    return await run_in_threadpool(_begin, here, solver, trace, kind, await form_values(request, LETTERS))


@router.get("/fronts/{job}")
def front_page(here: Here, _: Reader, job: str) -> Response:
    """The picture of a front, and its placement files."""
    row = front.find_front(here, job)
    document = json.loads(here.blobs.get(jobs.file_of(row, "front")))
    named = traces.names(here, row.request["traces"])
    return page("front", row=row, named=named, wanted=sought(row), **front_rows(document))


def taken_page(here: Service, taken: TraceAnswer) -> Response:
    """The page of a trace that was just uploaded, with notes on what was left out."""
    row = traces.find(here, taken.id)
    return _trace(here, row, proposal(row), notes=taken.all_notes)


def _trace(
    here: Service, row: TraceRow, values: dict[str, str], problem: Problem | None = None, notes: Sequence[str] = ()
) -> Response:
    solved = [one for one in placements.rows(here, limit=LOOKED_AT) if row.id in one.request["traces"]]
    return page(
        "trace",
        status=200 if problem is None else problem.status,
        trace=row,
        notes=notes,
        cluster=CLUSTER,
        more=MORE,
        group=GROUP,
        moves=MOVES,
        values=values,
        changed=any(values.get(field.name, "") != proposal(row).get(field.name, "") for field in MORE),
        placements=[(one, wanted(one), size(one.summary)) for one in solved[:SHOWN]],
        others=[(one, sought(one)) for one in _others(here, row)],
        problem=None if problem is None else problem.body,
    )


def _others(here: Service, trace: TraceRow) -> list[JobRow]:
    """Jobs that answered something else than a placement, newest first."""
    found = [row for row in jobs.rows(here, "done", LOOKED_AT) if row.kind in ("advise", "study", "front")]
    return [row for row in found if trace.id in row.request["traces"]][:SHOWN]


def _begin(here: Service, solver: Caller, trace: str, kind: str, values: dict[str, str]) -> Response:
    row = traces.find(here, trace)
    try:
        request = _request(here, solver, kind, body_of(trace, values))
        job = here.jobs.submit(kind, request, caller=solver.id)
    except (Problem, PlacementError) as error:
        return _trace(here, row, values, as_problem(error))
    return RedirectResponse(f"/jobs/{job.id}", status_code=303)


def _request(here: Service, solver: Caller, kind: str, given: dict[str, Any]) -> dict[str, Any]:
    """What a job of this kind keeps of the form. Raises Problem, PlacementError."""
    if kind == "solve":
        return placements.request_of(here, solver, checked(PlacementBody, given))
    given["options"].pop("max_moves", None)
    if kind == "study":
        shape = {name: given["cluster"][name] for name in ("num_nodes", "gpus_per_node")}
        return study.request_of(here, checked(StudyBody, {"traces": given["traces"], **shape}))
    if kind == "advise":
        return advice.request_of(here, checked(AdviseBody, _known(given, AdviseBody)))
    return front.request_of(here, checked(FrontBody, _known(given, FrontBody)))


def _known(given: dict[str, Any], body: type[AdviseBody | FrontBody]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if name in body.model_fields}
