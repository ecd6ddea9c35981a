"""`/v1/traces`: upload, register, list, inspect, delete."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import Field, ValidationError
from sqlalchemy import select
from starlette.datastructures import FormData, UploadFile

from placement.analysis.info import describe
from placement.readers import READERS
from placement.traces.trace import Trace
from placement_api.answers import TraceAnswer
from placement_api.archives import SUFFIXES
from placement_api.bodies import Body
from placement_api.problems import Problem, faults, missing
from placement_api.reading import ReadAs
from placement_api.routes import Here, Reader, Solver
from placement_api.routes.json_bodies import BodyRoute
from placement_api.service import Service
from placement_api.store.tables import OPEN, JobRow, TraceRow
from placement_api.store.traces import Taken, open_input
from placement_api.tokens import Caller

router = APIRouter(prefix="/v1/traces", tags=["traces"], route_class=BodyRoute)


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
                        "description": "expert-trace/1 as tar, tar.gz or zip; counts as .npy or .npz; or what an "
                        f"engine recorded ({', '.join(READERS)}): a file ({', '.join(SUFFIXES)}), or its folder as an "
                        "archive",
                    },
                    **ReadAs.model_json_schema()["properties"],
                },
            }
        }
    },
}
TAKING_IN = CapacityLimiter(4)  # uploads that are read at a time; others wait, and block no other request


class RegisterBody(Body):
    """A `path` or a `url`."""

    path: str | None = Field(
        default=None, max_length=4000, examples=["/srv/traces/monday"], description="On the service's machine"
    )
    url: str | None = Field(
        default=None, max_length=2000, examples=["s3://bucket/traces/monday"], description="Of an S3-compatible store"
    )
    read_as: ReadAs = Field(default_factory=ReadAs, description="Of a recording of an engine, which is converted")


@router.post("", status_code=201, responses=faults(), openapi_extra={"requestBody": UPLOAD})
async def upload(here: Here, caller: Solver, request: Request, response: Response) -> TraceAnswer:
    """Upload a trace, counts, or what an engine recorded. The same trace again gets the same id."""
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise Problem(415, "the body is no multipart/form-data", "send the file or archive as the part 'file'")
    async with request.form(max_files=1, max_fields=10) as form:
        taken = await taken_from(here, caller, form)
    response.headers["Location"] = f"/v1/traces/{taken.id}"
    return taken


@router.post("/register", status_code=201, responses=faults(507))
async def register(here: Here, caller: Solver, body: RegisterBody, response: Response) -> TraceAnswer:
    """Use a trace below a folder (`--traces-folder`) where it is, or fetch one from a store (`--traces-store`)."""
    taken = await to_thread.run_sync(_register, here, caller, body, limiter=TAKING_IN)
    response.headers["Location"] = f"/v1/traces/{taken.id}"
    return taken


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
def delete_trace(here: Here, caller: Solver, trace: str) -> Response:
    """Delete a trace that no queued or running job needs; a registered one is only forgotten."""
    row = find(here, trace)
    caller.check_owns(row.caller, "trace")
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


def names(here: Service, traces: list[str]) -> list[tuple[str, str]]:
    """(id, name of the model) of those of these traces that are still here."""
    with here.database.reading() as session:
        rows = [session.get(TraceRow, trace) for trace in traces]
    return [(row.id, row.name) for row in rows if row is not None]


def readers(here: Service, traces: list[str]) -> list[str]:
    """The readers of the recordings that these traces were made of."""
    with here.database.reading() as session:
        return list(session.scalars(select(TraceRow.reader).where(TraceRow.id.in_(traces), TraceRow.reader != "")))


async def taken_from(here: Service, caller: Caller, form: FormData, *others: str) -> TraceAnswer:
    """The trace in the part `file`, read as the other parts but `others` say. Raises what `upload` answers."""
    file = form.get("file")
    if not isinstance(file, UploadFile):
        raise Problem(422, "the part 'file' is missing", "send the archive as the part 'file', with a file name")
    try:
        read_as = ReadAs.model_validate({name: one for name, one in form.items() if name not in ("file", *others)})
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None
    return await to_thread.run_sync(take, here, caller, file, read_as, limiter=TAKING_IN)


def take(here: Service, caller: Caller, file: UploadFile, read_as: ReadAs | None = None) -> TraceAnswer:
    with tempfile.NamedTemporaryFile(prefix="upload-") as copy:
        shutil.copyfileobj(file.file, copy, 1 << 20)
        copy.flush()
        return add(here, caller, here.traces.take(Path(copy.name), file.filename or "", read_as))


def _register(here: Service, caller: Caller, body: RegisterBody) -> TraceAnswer:
    if (body.path is None) == (body.url is None):
        raise Problem(422, "the body has both path and url, or neither", "give one of them")
    if body.url is not None:
        return add(here, caller, here.traces.fetch(body.url, body.read_as))
    return add(here, caller, here.traces.register(str(body.path), body.read_as))


def add(here: Service, caller: Caller, taken: Taken) -> TraceAnswer:
    """Keep the row of a trace; it stays with who sent it first."""
    with here.database.session() as session:
        known = session.get(TraceRow, taken.row.id)
        taken.row.caller = caller.id if known is None else known.caller
        if known is not None:
            taken.row.reader = taken.row.reader or known.reader  # the same trace, sent as it was written
        return TraceAnswer.of(session.merge(taken.row), taken.converted, taken.notes)
