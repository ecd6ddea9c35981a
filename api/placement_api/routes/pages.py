"""`/`, `/jobs/{id}`, `/docs`, `/login`: what people look at. They call the same functions as `/v1`."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import RedirectResponse
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile

from placement.errors import PlacementError
from placement_api.answers import JobAnswer, TraceAnswer
from placement_api.jobs.turns import waiting_before
from placement_api.pages.example import write_example
from placement_api.pages.looks import size, sought, wanted
from placement_api.pages.recording_form import CHOICES, ENDINGS, READ_AS, read_as_of
from placement_api.pages.render import asset, page
from placement_api.pages.steps import steps_of
from placement_api.problems import Problem
from placement_api.routes import Here, Reader, Solver, jobs, placements, traces
from placement_api.routes.page_route import PageRoute, as_problem
from placement_api.routes.trace_pages import taken_page
from placement_api.service import Service
from placement_api.store.tables import DONE, OPEN, QUEUED, JobRow
from placement_api.tokens import COOKIE, Caller

SHOWN, JOBS_SHOWN = 50, 10
DONE_PAGES = {
    "solve": "/placements/{job}",
    "advise": "/v1/jobs/{job}/advice/page",
    "study": "/v1/jobs/{job}/study/page",
    "front": "/fronts/{job}",
}
router = APIRouter(include_in_schema=False, route_class=PageRoute)


@router.get("/")
def home(here: Here, reader: Reader) -> Response:
    return _home(here, reader)


@router.post("/traces")
async def upload(here: Here, solver: Solver, request: Request) -> Response:
    """A trace by the form; with script the page sends it to `/v1/traces` and shows how far it is.

    Where something was left out, the answer is the trace's page with a note on that; else it leads to that page.
    """
    async with request.form(max_files=1, max_fields=10) as form:
        try:
            trace = await run_in_threadpool(_taken, here, solver, form)
        except (Problem, PlacementError) as error:
            return await run_in_threadpool(_home, here, solver, as_problem(error))
    if not trace.all_notes:
        return RedirectResponse(f"/traces/{trace.id}", status_code=303)
    return await run_in_threadpool(taken_page, here, trace)


@router.post("/example")
def example(here: Here, solver: Solver) -> Response:
    with TemporaryDirectory(prefix="example-") as folder:
        archive = Path(folder) / "example.tar"
        write_example(archive)
        row = traces.add(here, solver, here.traces.take(archive, archive.name))
    return RedirectResponse(f"/traces/{row.id}", status_code=303)


@router.get("/jobs/{job}")
def job_page(here: Here, _: Reader, job: str) -> Response:
    row = jobs.find(here, job)
    if row.state == DONE and row.kind in DONE_PAGES:
        return RedirectResponse(DONE_PAGES[row.kind].format(job=job), status_code=303)
    named = traces.names(here, row.request["traces"])
    before = None
    if row.state == QUEUED:
        with here.database.reading() as session:
            before = waiting_before(session, row)
    told, live = JobAnswer.of(row), row.state in OPEN
    return page("job", job=told, steps=steps_of(row), named=named, live=live, before=before, wanted=sought(row))


@router.post("/jobs/{job}/cancel")
def cancel(here: Here, solver: Solver, job: str) -> Response:
    jobs.cancel_job(here, solver, job)
    return RedirectResponse(f"/jobs/{job}", status_code=303)


@router.get("/docs")
def docs(request: Request) -> Response:
    api = request.app.openapi()

    def examples(schema: dict[str, Any]) -> list[Any]:
        name = schema.get("$ref", "").rpartition("/")[2]
        return list(api["components"]["schemas"].get(name, schema).get("examples", []))

    return page("docs", api=api, examples=examples)


@router.get("/login")
def login_page() -> Response:
    return page("login", problem=None)


@router.post("/login")
async def login(here: Here, request: Request) -> Response:
    """Keep the token in a cookie that no script reads and no other site sends."""
    async with request.form(max_files=0, max_fields=2) as form:
        token = str(form.get("token", "")).strip()
    try:
        request.state.caller = await here.tokens.caller(f"Bearer {token}")
    except Problem as problem:
        body = problem.body
        if problem.status == 401:  # else the database is away, or too many were wrong
            body = body.model_copy(update={"mend": "paste it whole, as it was printed when it was made"})
        return page("login", status=problem.status, problem=body)
    answer = RedirectResponse("/", status_code=303)
    # a browser says how it reached us, also where no proxy that is trusted does
    secure = request.url.scheme == "https" or request.headers.get("origin", "").startswith("https://")
    answer.set_cookie(COOKIE, token, httponly=True, samesite="strict", secure=secure)
    return answer


@router.get("/static/{name:path}")
def static(name: str, v: str = "") -> Response:
    found = asset(name)
    if found is None:
        raise Problem(404, f"there is no file {name[:80]!r}", "see /")
    kept = {"Cache-Control": "public, max-age=31536000, immutable"} if v else {}
    return Response(found[0], media_type=found[1], headers=kept)


def _home(here: Service, reader: Caller, problem: Problem | None = None) -> Response:
    rows = placements.rows(here, limit=SHOWN)
    not_done = [row for state in ("running", "queued", "failed") for row in jobs.rows(here, state, JOBS_SHOWN)]
    return page(
        "home",
        status=200 if problem is None else problem.status,
        traces=traces.list_traces(here, reader, limit=SHOWN),
        placements=[(row, wanted(row), size(row.summary)) for row in rows],
        jobs=[(JobAnswer.of(row), _names(here, row), sought(row)) for row in not_done[:JOBS_SHOWN]],
        live=any(row.state in OPEN for row in not_done),
        read_as=READ_AS,
        readers=CHOICES,
        endings=ENDINGS,
        problem=None if problem is None else problem.body,
    )


def _names(here: Service, row: JobRow) -> str:
    return ", ".join(name for _, name in traces.names(here, row.request["traces"])) or "a trace that was deleted"


def _taken(here: Service, solver: Caller, form: FormData) -> TraceAnswer:
    """The trace of a form. Raises Problem, PlacementError."""
    file = form.get("file")
    if not isinstance(file, UploadFile) or not file.filename:
        raise Problem(422, "no file was chosen", "choose a tar or zip of a trace folder, counts, or a recording")
    return traces.take(here, solver, file, read_as_of(form))
