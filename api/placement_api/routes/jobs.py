"""`/v1/jobs`: state, events, cancel."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import delete, select
from starlette.concurrency import run_in_threadpool

from placement_api.answers import JobAnswer
from placement_api.problems import Problem, faults, missing
from placement_api.routes import Here, Reader, Solver
from placement_api.service import Service
from placement_api.store.database import AWAY
from placement_api.store.tables import DONE, OPEN, JobRow, KeyRow

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
EVENT_S, ALIVE_S = 0.25, 15.0


@router.get("", responses=faults())
def list_jobs(
    here: Here,
    _: Reader,
    state: Literal["queued", "running", "done", "failed", "cancelled"] | None = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> list[JobAnswer]:
    """The jobs, newest first."""
    return [JobAnswer.of(row) for row in rows(here, state, limit, offset)]


@router.get("/{job}", responses=faults(404))
def get_job(here: Here, _: Reader, job: str) -> JobAnswer:
    """State and progress."""
    return JobAnswer.of(find(here, job))


@router.post("/{job}/cancel", responses=faults(404))
def cancel_job(here: Here, caller: Solver, job: str) -> JobAnswer:
    """Stop it within a second. A job that has ended stays as it is."""
    caller.check_owns(find(here, job).caller, "job")
    return JobAnswer.of(here.jobs.cancel(job))


@router.get(
    "/{job}/events",
    responses={200: {"content": {"text/event-stream": {}}, "description": "Events"}, **faults(404)},
    response_class=StreamingResponse,
)
async def job_events(here: Here, _: Reader, job: str, request: Request) -> StreamingResponse:
    """Server-sent events `job`, data as `GET /v1/jobs/{job}`, at every change; the last says how it ended."""
    first = await run_in_threadpool(find, here, job)

    async def events() -> AsyncIterator[str]:
        row, told, spoke = first, "", time.monotonic()
        while True:
            answer = JobAnswer.of(row)
            now = json.dumps(answer.model_dump(exclude={"progress": {"left_s"}}))
            if now != told:
                told, spoke = now, time.monotonic()
                yield f"event: job\ndata: {answer.model_dump_json()}\n\n"
            elif time.monotonic() - spoke > ALIVE_S:
                spoke = time.monotonic()
                yield ": still here\n\n"
            if row.state not in OPEN or await request.is_disconnected():
                return
            await asyncio.sleep(EVENT_S)
            with suppress(*AWAY):  # the job goes on, and so do its events
                row = await run_in_threadpool(find, here, job)

    return StreamingResponse(events(), media_type="text/event-stream", headers={"X-Accel-Buffering": "no"})


@router.delete("/{job}", status_code=204, responses=faults(404, 409))
async def delete_job(here: Here, caller: Solver, job: str) -> Response:
    """Delete a job that has ended, and the placement that it made; retention removes the files."""
    row = await run_in_threadpool(find, here, job)
    caller.check_owns(row.caller, "job")
    if row.state in OPEN:
        raise Problem(409, f"job {row.id} is {row.state}", "cancel it first: POST /v1/jobs/{id}/cancel")
    await run_in_threadpool(forget, here, row)
    here.recent.forget(job)
    return Response(status_code=204)


@router.get("/{job}/evaluation", responses=faults(404, 409))
def evaluation(here: Here, _: Reader, job: str) -> Response:
    """What `POST /v1/placements/{id}/evaluate` measured: `placement evaluate --json` of one map."""
    return answered_file(here, job, "evaluation")


def rows(here: Service, state: str | None, limit: int, offset: int = 0) -> list[JobRow]:
    """The jobs in a state, or all, newest first."""
    wanted = select(JobRow) if state is None else select(JobRow).where(JobRow.state == state)
    with here.database.reading() as session:
        return list(session.scalars(wanted.order_by(JobRow.created.desc(), JobRow.id).limit(limit).offset(offset)))


def find(here: Service, job: str) -> JobRow:
    with here.database.reading() as session:
        row = session.get(JobRow, job)
    if row is None:
        raise missing("job", job)
    return row


def forget(here: Service, row: JobRow) -> None:
    """Delete a job that has ended, and what it is known by."""
    with here.database.session() as session:
        session.execute(delete(KeyRow).where(KeyRow.job == row.id))
        session.execute(delete(JobRow).where(JobRow.id == row.id))


def file_of(row: JobRow, name: str) -> str:
    """The digest of a file of a job's answer. Raises Problem (404, 409)."""
    if row.state != DONE:
        raise Problem(409, f"job {row.id} is {row.state}", "wait until it is done: GET /v1/jobs/{id}/events")
    if name not in row.files:
        raise Problem(
            404, f"job {row.id} made no {name}", f"it made {', '.join(sorted(row.files))}; ask for it when solving"
        )
    return str(row.files[name])


def answered_file(here: Service, job: str, name: str, media_type: str = "application/json") -> Response:
    """A file of a job's answer, as it was written. Raises Problem (404, 409)."""
    return Response(here.blobs.get(file_of(find(here, job), name)), media_type=media_type)


async def wait_for(here: Service, row: JobRow, seconds: float) -> JobRow:
    """The job when it has ended, or as it is after so many seconds."""
    end = time.monotonic() + seconds
    pause = 0.02
    while row.state in OPEN and time.monotonic() < end:
        await asyncio.sleep(min(pause, max(end - time.monotonic(), 0.0)))
        pause = min(pause * 1.5, EVENT_S)
        row = await run_in_threadpool(find, here, row.id)
    return row
