"""What requests for a job of any kind share: the job of a body, and the answer to whoever asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from fastapi import Depends, Header, Query, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from placement_api.answers import ANSWERS, JobAnswer
from placement_api.bodies import FitBody, options_of
from placement_api.description import answers
from placement_api.problems import MEDIA_TYPE, Problem, faults, missing
from placement_api.routes import Here, Solver
from placement_api.routes.jobs import file_of, wait_for
from placement_api.service import Service
from placement_api.store.tables import DONE, FAILED, JobRow, TraceRow
from placement_api.tokens import Caller

LINKED = 20  # traces of a job: more than a header should hold
Wait = Annotated[float, Query(ge=0, description="Seconds to wait for the answer itself", examples=[30])]
Key = Annotated[str | None, Header(min_length=1, max_length=200, description="The same key twice is one job")]
ACCEPTED: dict[int | str, dict[str, Any]] = {
    **answers("application/json", what="Done in time: the answer itself"),
    202: {"model": JobAnswer, "description": "A job; `Location` is where it is"},
    **faults(404, 409, 500),
}
SUBMITS: dict[str, Any] = {"responses": ACCEPTED, "response_class": JSONResponse, "response_model": None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What comes with a request for a job, beside the body.

    wait  seconds within which the answer is wanted instead of the job
    key   Idempotency-Key
    """

    here: Service
    caller: Caller
    wait: float
    key: str | None

    async def job(self, kind: str, request_of: Callable[[], dict[str, Any]]) -> Response:
        """The answer to a request for a job of this kind, or the job. Raises Problem.

        Args:
            kind: One of `ANSWERS`.
            request_of: Gives the request as it is kept, checked as far as can be; called in a thread.
        """
        check_wait(self.here, self.wait)
        request = await run_in_threadpool(request_of)
        row = await run_in_threadpool(self.here.jobs.submit, kind, request, caller=self.caller.id, key=self.key)
        return await _answer_of(self.here, row, self.wait)


async def _asked(here: Here, caller: Solver, wait: Wait = 0.0, idempotency_key: Key = None) -> Asked:
    return Asked(here=here, caller=caller, wait=wait, key=idempotency_key)


Ask = Annotated[Asked, Depends(_asked)]


def check_wait(here: Service, wait: float) -> None:
    """Raise Problem (422) for a wait that is longer than allowed."""
    if wait > here.settings.limits.wait_s:
        raise Problem(
            422, f"wait={wait:g} is too long", f"wait at most {here.settings.limits.wait_s:g} s, then ask for the job"
        )


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


def as_solve(body: FitBody) -> dict[str, Any]:
    """The body with what a solve has beside: the checks of solves read it."""
    return body.model_dump() | {"robust": None, "current": None, "group": None}


def kept(request: dict[str, Any]) -> dict[str, Any]:
    """A request as its job keeps it: what an engine sets is told apart no more from what was given."""
    return request | {"options": asdict(options_of(request["options"]))}


async def _answer_of(here: Service, row: JobRow, wait: float) -> Response:
    """The answer of the job if it is done in time, its problem if it failed, else the job. Raises Problem."""
    row = await wait_for(here, row, wait)
    links = ", ".join(f'</v1/traces/{name}>; rel="via"' for name in row.request["traces"][:LINKED])
    where = {"Location": f"/v1/jobs/{row.id}", "Link": links}
    if wait and row.state == DONE:
        content = await run_in_threadpool(here.blobs.get, file_of(row, ANSWERS[row.kind]))
        return Response(
            content, media_type="application/json", headers={"Content-Location": str(JobAnswer.of(row).result), **where}
        )
    if wait and row.state == FAILED and row.error is not None:
        return JSONResponse(row.error, status_code=row.error["status"], media_type=MEDIA_TYPE, headers=where)
    return JSONResponse(JobAnswer.of(row).model_dump(mode="json"), status_code=202, headers=where)
