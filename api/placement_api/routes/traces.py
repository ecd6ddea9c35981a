"""`/v1/traces`: upload, register, list, inspect, delete."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from sqlalchemy import select
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from placement.traces import Trace
from placement.traces.info import describe
from placement_api.answers import TraceAnswer
from placement_api.bodies import Body
from placement_api.problems import Problem, faults, missing
from placement_api.routes import Here, Reader, Solver
from placement_api.service import Service
from placement_api.store.tables import OPEN, JobRow, TraceRow
from placement_api.store.traces import open_input

router = APIRouter(prefix="/v1/traces", tags=["traces"])


UPLOAD: dict[str, Any] = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "required": ["file"],
                "properties": {
                    "file": {
                        "type": "string",
                        "format": "binary",
                        "description": "tar, tar.gz or zip of expert-trace/1; or .npy, .npz of counts",
                    },
                    "top_k": {"type": "integer", "minimum": 1, "description": "Of counts that do not say it"},
                },
            }
        }
    },
}


class RegisterBody(Body):
    path: str = Field(max_length=4000, examples=["/srv/traces/monday"], description="Folder of the service's machine")


@router.post("", status_code=201, responses=faults(), openapi_extra={"requestBody": UPLOAD})
async def upload(here: Here, _: Solver, request: Request) -> TraceAnswer:
    """Upload a trace. The same trace again gets the same id."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Problem(415, "the body is no multipart/form-data", "send the archive as the part 'file'")
    async with request.form(max_files=1, max_fields=2) as form:
        file, top_k = form.get("file"), form.get("top_k")
        if not isinstance(file, UploadFile):
            raise Problem(422, "the part 'file' is missing", "send the archive as the part 'file', with a file name")
        if top_k is not None and not (isinstance(top_k, str) and top_k.isdecimal()):
            raise Problem(
                422, f"top_k={str(top_k)[:40]!r} is no number", "give the experts that a token visits, or leave it out"
            )
        return await run_in_threadpool(take, here, file, None if top_k is None else int(top_k))


@router.post("/register", status_code=201, responses=faults())
def register(here: Here, _: Solver, body: RegisterBody) -> TraceAnswer:
    """Use a trace that lies below a folder that the service was told of (`--traces-folder`), where it is."""
    return _add(here, here.traces.register(body.path))


@router.get("", responses=faults())
def list_traces(
    here: Here,
    _: Reader,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=2**31)] = 0,
) -> list[TraceAnswer]:
    """The traces, newest first."""
    with here.database.reading() as session:
        rows = session.scalars(
            select(TraceRow).order_by(TraceRow.created.desc(), TraceRow.id).limit(limit).offset(offset)
        )
        return [TraceAnswer.of(row) for row in rows]


@router.get("/{trace}", responses=faults(404))
def get_trace(here: Here, _: Reader, trace: str) -> TraceAnswer:
    return TraceAnswer.of(find(here, trace))


@router.get("/{trace}/info", responses=faults(404, 409))
def inspect(here: Here, _: Reader, trace: str) -> dict[str, Any]:
    """How its routing looks, layer by layer: `placement traces info --json`."""
    row = find(here, trace)
    opened = open_input([here.traces.path_of(row)], row.top_k)
    if not isinstance(opened, Trace):
        raise Problem(422, "counts have no tokens to inspect", "upload a trace")
    return describe(opened).as_dict()


@router.delete("/{trace}", status_code=204, responses=faults(404, 409))
def delete_trace(here: Here, _: Solver, trace: str) -> Response:
    """Delete a trace that no queued or running job needs; a registered one is only forgotten."""
    row = find(here, trace)
    with here.database.session() as session:
        for job in session.scalars(select(JobRow).where(JobRow.state.in_(OPEN))):
            if trace in job.request["traces"]:
                raise Problem(409, f"job {job.id} needs this trace", "wait for the job, or cancel it")
        session.delete(row)
    here.traces.remove(row)
    return Response(status_code=204)


def find(here: Service, trace: str) -> TraceRow:
    with here.database.reading() as session:
        row = session.get(TraceRow, trace)
    if row is None:
        raise missing("trace", trace)
    return row


def take(here: Service, file: UploadFile, top_k: int | None) -> TraceAnswer:
    with tempfile.NamedTemporaryFile(prefix="upload-") as copy:
        shutil.copyfileobj(file.file, copy, 1 << 20)
        copy.flush()
        return _add(here, here.traces.take(Path(copy.name), file.filename or "", top_k))


def _add(here: Service, row: TraceRow) -> TraceAnswer:
    with here.database.session() as session:
        return TraceAnswer.of(session.merge(row))
