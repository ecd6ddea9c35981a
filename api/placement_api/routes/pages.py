"""`/`, `/jobs/{id}`, `/placements/{id}`, `/docs`: what people look at. They call the same functions as `/v1`."""

from __future__ import annotations

import time
from importlib.resources import files
from typing import Annotated, Any

import jinja2
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from placement.errors import PlacementError
from placement.exporters import EXPORTERS
from placement.report.numbers import number
from placement_api.answers import JobAnswer
from placement_api.bodies import PlacementBody
from placement_api.problems import Problem, from_library
from placement_api.routes import Here, Reader, Solver, jobs, placements, traces
from placement_api.service import Service
from placement_api.store.tables import DONE, OPEN
from placement_api.tokens import COOKIE

router = APIRouter(include_in_schema=False)
SHOWN = 50
MEDIA = {"job.js": "text/javascript", "placement.js": "text/javascript"}

_folder = files("placement_api.pages")
_pages = jinja2.Environment(
    loader=jinja2.FunctionLoader(lambda name: _folder.joinpath(name).read_text("utf-8")),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
)
_pages.globals["style"] = files("placement.report").joinpath("report.css").read_text("utf-8")
_pages.filters["number"] = number
_pages.filters["when"] = lambda seconds: time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds))


def page(name: str, status: int = 200, **context: Any) -> HTMLResponse:
    return HTMLResponse(_pages.get_template(f"{name}.html.j2").render(**context), status_code=status)


@router.get("/")
def home(here: Here, reader: Reader) -> Response:
    return _home(here, reader)


@router.post("/place")
async def place(here: Here, solver: Solver, request: Request) -> Response:
    async with request.form(max_files=1, max_fields=20) as form:
        try:
            row = await run_in_threadpool(_place, here, solver.id, form)
        except (Problem, PlacementError) as error:
            problem = error if isinstance(error, Problem) else from_library(error)
            return await run_in_threadpool(_home, here, solver, problem)
    return RedirectResponse(f"/jobs/{row}", status_code=303)


@router.get("/jobs/{job}")
def job_page(here: Here, _: Reader, job: str) -> Response:
    row = jobs.find(here, job)
    if row.state == DONE:
        return RedirectResponse(f"/placements/{job}", status_code=303)
    return page("job", job=JobAnswer.of(row), live=row.state in OPEN)


@router.post("/jobs/{job}/cancel")
def cancel(here: Here, _: Solver, job: str) -> Response:
    here.jobs.cancel(job)
    return RedirectResponse(f"/jobs/{job}", status_code=303)


@router.get("/placements/{placement}")
def placement_page(
    here: Here, reader: Reader, placement: str, engine: Annotated[str | None, Query(max_length=40)] = None
) -> Response:
    row = placements.find_placement(here, placement)
    hints: list[str] = []
    problem = None
    if engine is not None:
        try:
            hints = placements.hints(here, reader, placement, engine)
        except PlacementError as error:
            problem = from_library(error).body
    return page(
        "placement",
        id=row.id,
        summary=row.summary,
        report="report" in row.files,
        engines=list(EXPORTERS),
        engine=engine,
        hints=hints,
        problem=problem,
    )


@router.get("/docs")
def docs(request: Request) -> Response:
    api = request.app.openapi()

    def examples(schema: dict[str, Any]) -> list[Any]:
        name = schema.get("$ref", "").rpartition("/")[2]
        return list(api["components"]["schemas"].get(name, schema).get("examples", []))

    return page("docs", api=api, examples=examples)


@router.get("/login")
def login_page() -> Response:
    return page("login")


@router.post("/login")
async def login(here: Here, request: Request) -> Response:
    """Keep the token in a cookie that no script reads and no other site sends."""
    async with request.form(max_files=0, max_fields=2) as form:
        token = str(form.get("token", "")).strip()
    try:
        await here.tokens.caller(f"Bearer {token}")
    except Problem as problem:
        return page("login", status=401, problem=problem.body)
    answer = RedirectResponse("/", status_code=303)
    answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=request.url.scheme == "https")
    return answer


@router.get("/static/{name}")
def static(name: str) -> Response:
    if name not in MEDIA:
        raise Problem(404, f"there is no file {name[:80]!r}", "see /")
    return Response(_folder.joinpath(name).read_bytes(), media_type=MEDIA[name])


def _home(here: Service, reader: Reader, problem: Problem | None = None) -> Response:
    return page(
        "home",
        status=200 if problem is None else problem.status,
        traces=traces.list_traces(here, reader, limit=SHOWN),
        placements=placements.list_placements(here, reader, limit=SHOWN),
        problem=None if problem is None else problem.body,
    )


def _place(here: Service, caller: str, form: FormData) -> str:
    """The id of the job of a form. Raises Problem, PlacementError."""
    file, trace = form.get("file"), str(form.get("trace") or "")
    if isinstance(file, UploadFile) and file.filename:
        trace = traces.take(here, file, None).id
    if not trace:
        raise Problem(422, "no trace was chosen", "choose a file, or one of the traces that are here")
    cluster = {}
    for name in ("num_nodes", "gpus_per_node", "redundant_experts"):
        value = str(form.get(name, ""))
        if not value.isdecimal() or len(value) > 9:
            raise Problem(422, f"{name}={value[:40]!r} is no number", "give a whole number")
        cluster[name] = int(value)
    counts = traces.find(here, trace).kind == "counts"
    body = {"traces": [trace], "cluster": cluster, "options": {"objective": "balance"} if counts else {}}
    request = placements.request_of(here, PlacementBody.model_validate(body))
    return here.jobs.submit("solve", request, caller=caller).id
