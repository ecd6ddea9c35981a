"""What the page's small forms do: delete, publish under a name, move an alias, log out."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool

from placement_api.bodies import MoveBody, PublishBody, RollbackBody
from placement_api.routes import Here, Promoter, Solver, jobs, names, placements, traces
from placement_api.routes.page_route import PageRoute, checked, form_values
from placement_api.tokens import COOKIE

router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.post("/logout")
def log_out() -> Response:
    answer = RedirectResponse("/login", status_code=303)
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
    return answer


@router.post("/placements/{placement}/delete")
async def delete_placement(here: Here, solver: Solver, placement: str) -> Response:
    await placements.delete_placement(here, solver, placement)
    return RedirectResponse("/#placements", status_code=303)


@router.post("/jobs/{job}/delete")
async def delete_job(here: Here, solver: Solver, job: str) -> Response:
    await jobs.delete_job(here, solver, job)
    return RedirectResponse("/", status_code=303)


@router.post("/traces/{trace}/delete")
def delete_trace(here: Here, solver: Solver, trace: str) -> Response:
    traces.delete_trace(here, solver, trace)
    return RedirectResponse("/#traces", status_code=303)


@router.post("/placements/{placement}/publish")
async def publish(here: Here, solver: Solver, placement: str, request: Request) -> Response:
    values = await form_values(request)
    body = checked(PublishBody, {"placement": placement, "note": values.get("note", "")})
    name = values.get("name", "")
    await run_in_threadpool(names.publish, here, solver, name, body)
    return RedirectResponse(f"/names/{name}", status_code=303)


@router.post("/names/{name:path}@{alias}/rollback")
async def roll_back(here: Here, promoter: Promoter, name: str, alias: str, request: Request) -> Response:
    values = await form_values(request)
    given = {"expect": _number(values.get("expect")), "note": values.get("note", "")}
    body = checked(RollbackBody, given)
    await run_in_threadpool(names.roll_back, here, promoter, name, alias, body)
    return RedirectResponse(f"/names/{name}", status_code=303)


@router.post("/names/{name:path}/promote")
async def promote(here: Here, promoter: Promoter, name: str, request: Request) -> Response:
    values = await form_values(request)
    given = {"version": _number(values.get("version")), "expect": None, "note": values.get("note", "")}
    body = checked(MoveBody, given)
    await run_in_threadpool(names.promote, here, promoter, name, values.get("alias", ""), body)
    return RedirectResponse(f"/names/{name}", status_code=303)


def _number(text: str | None) -> int | str | None:
    """What a field says; what is no number stays as it is, to be refused."""
    return int(text) if text and text.isdecimal() and len(text) < 18 else text or None
