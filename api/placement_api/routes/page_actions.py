"""What the page's small forms do: delete, publish under a name, move an alias, log out."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool

from placement_api.problems import Problem
from placement_api.routes import Here, Promoter, Solver, jobs, names, placements, traces
from placement_api.routes.page_route import PageRoute
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
    values = await _values(request)
    body = _body(names.PublishBody, placement=placement, note=values.get("note", ""))
    name = values.get("name", "")
    await run_in_threadpool(names.publish, here, solver, name, body)
    return RedirectResponse(f"/names/{name}", status_code=303)


@router.post("/names/{name:path}@{alias}/rollback")
async def roll_back(here: Here, promoter: Promoter, name: str, alias: str, request: Request) -> Response:
    values = await _values(request)
    body = _body(names.RollbackBody, expect=_number(values.get("expect")), note=values.get("note", ""))
    await run_in_threadpool(names.roll_back, here, promoter, name, alias, body)
    return RedirectResponse(f"/names/{name}", status_code=303)


@router.post("/names/{name:path}/promote")
async def promote(here: Here, promoter: Promoter, name: str, request: Request) -> Response:
    values = await _values(request)
    body = _body(names.MoveBody, version=_number(values.get("version")), expect=None, note=values.get("note", ""))
    await run_in_threadpool(names.promote, here, promoter, name, values.get("alias", ""), body)
    return RedirectResponse(f"/names/{name}", status_code=303)


def _number(text: str | None) -> int | str | None:
    """What a field says; what is no number stays as it is, to be refused."""
    return int(text) if text and text.isdecimal() and len(text) < 18 else text or None


def _body(kind: type[Any], **values: object) -> Any:
    """Raises Problem (422)."""
    made: BaseModel
    try:
        made = kind.model_validate(values)
    except ValidationError as error:
        fault = error.errors()[0]
        raise Problem(422, f"{fault['loc'][-1]}: {fault['msg']}", "go back and change this value") from None
    return made


async def _values(request: Request) -> dict[str, str]:
    async with request.form(max_files=0, max_fields=10) as form:
        return {name: str(value).strip() for name, value in form.items()}
