"""Errors as `application/problem+json` (RFC 9457): what is wrong, what is allowed, how to mend it."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from sqlalchemy.exc import DataError, DBAPIError, TimeoutError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from placement.errors import (
    TYPE_URI,
    InfeasibleError,
    LimitError,
    OutputError,
    PlacementError,
    printable,
    type_of_error,
)

MEDIA_TYPE = "application/problem+json"
MOST_FAULTS = 20
NOT_JSON = "the request's Content-Type is not that of JSON"
# options of the command line that are keys of a body; those of `placement serve` are none
OPTION = re.compile(
    r"--(nodes|gpus-per-node|slots-per-gpu|redundant-experts|cluster|solver|objective|bound|seed|work-limit|time-limit|"
    r"max-moves|max-moves-per-layer|max-imbalance|max-node-imbalance|balance-weight|replica-choice|transport|holdout|"
    r"tolerance|home-from|top-k|experts|layer-ids|model|from|engine|step-tokens|keep-unwritten)(?![\w-])"
)
KEYS = {"nodes": "num_nodes", "time-limit": "time_limit_s"}
log = logging.getLogger("placement.service")


class Fault(BaseModel):
    where: str = Field(description="Place in the request, as body/options/seed", examples=["body/options/seed"])
    what: str = Field(examples=["Input should be a valid integer"])


class ProblemBody(BaseModel):
    """Every answer that is no success."""

    type: str = Field(
        default="about:blank", description="Of the library's errors: its class", examples=[f"{TYPE_URI}InfeasibleError"]
    )
    title: str = Field(examples=["Unprocessable Content"])
    status: int = Field(examples=[422])
    detail: str = Field(description="What is wrong, and which value", examples=["seed=-1 must be from 0 to 2^63 - 1"])
    mend: str = Field(description="What is allowed, or what to do", examples=["give a seed from 0 to 2^63 - 1"])
    faults: list[Fault] = Field(default=[], description="Of a body that does not have the form: each fault")


class Problem(Exception):
    """Raised by whatever finds a request wrong; becomes the answer."""

    def __init__(
        self, status: int, detail: str, mend: str, *, faults: list[Fault] | None = None, **headers: str
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.body = ProblemBody(
            title=HTTPStatus(status).phrase,
            status=status,
            detail=printable(detail),
            mend=printable(mend),
            faults=faults or [],
        )

    def response(self) -> JSONResponse:
        return JSONResponse(
            self.body.model_dump(mode="json"), status_code=self.status, headers=self.headers, media_type=MEDIA_TYPE
        )


def for_people(headers: Mapping[str, str], path: str) -> bool:
    """Whether a browser asks for a page; what is below /v1 is never one."""
    return "text/html" in headers.get("accept", "") and not path.startswith("/v1")


def in_rest_words(text: str) -> str:
    """A message of the library with keys of bodies in place of options of the command line."""
    return OPTION.sub(lambda found: KEYS.get(found[1], found[1].replace("-", "_")), text)


def missing(what: str, name: str) -> Problem:
    return Problem(404, f"there is no {what} {name[:80]!r}", f"list what there is with GET /v1/{what}s")


def from_library(error: PlacementError) -> Problem:
    """The library's messages say what is wrong and, after a semicolon, how to mend it; some say it in one sentence.

    They name options of the command line: the service calls those of a body by their keys.
    """
    problem = _worded(error)
    for name in ("detail", "mend"):
        setattr(problem.body, name, in_rest_words(getattr(problem.body, name)))
    problem.body.type = type_of_error(error)
    return problem


def _worded(error: PlacementError) -> Problem:
    what, _, mend = str(error).rpartition("; ")
    if isinstance(error.__context__, OSError) and is_full(error.__context__):
        return full_disk()
    if isinstance(error, OutputError):
        return Problem(507, what, "free space on the disk of the service")
    if not what:
        what, mend = str(error), "give a value that is allowed, as the detail says; /docs has the form"
    if isinstance(error, (InfeasibleError, LimitError)) and what == str(error):
        mend = "ask for less: looser caps, more slots, more moves or more time"
    return Problem(422, what, mend)


def from_database(error: DBAPIError | TimeoutError) -> Problem:
    """What to answer when the database, or its disk, fails."""
    reason = getattr(error, "orig", None) or error
    log.error("the database does not answer: %s", type(reason).__name__)
    if getattr(reason, "sqlite_errorname", "") == "SQLITE_FULL" or getattr(reason, "sqlstate", "") == "53100":
        return full_disk()
    return Problem(503, "the database does not answer", "try again later", Retry_After="5")


def is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def full_disk() -> Problem:
    return Problem(507, "the disk of the service is full", "free space, or let it keep less: --keep-days")


def _unread(fault: dict[str, Any]) -> bool:
    """Whether a body was not looked into, for it is not said to be JSON."""
    return fault["type"] == "model_attributes_type" and tuple(fault["loc"]) == ("body",)


def faults(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route documents beside its success; some may happen everywhere."""
    return {
        status: {
            "model": ProblemBody,
            "description": HTTPStatus(status).phrase,
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/ProblemBody"}}},
        }
        for status in sorted({400, 401, 403, 408, 413, 422, 429, 503, 507, *statuses})
    }


def install(app: FastAPI, explain: Callable[[Problem], Response]) -> None:
    """Every error of the application is answered in this form; what was not foreseen is logged, not shown.

    People get a page, of `explain`.
    """

    def told(request: Request, problem: Problem) -> Response:
        return explain(problem) if for_people(request.headers, request.url.path) else problem.response()

    @app.exception_handler(Problem)
    def on_problem(request: Request, error: Problem) -> Response:
        return told(request, error)

    @app.exception_handler(PlacementError)
    def on_library_error(request: Request, error: PlacementError) -> Response:
        return told(request, from_library(error))

    @app.exception_handler(RequestValidationError)
    def on_invalid(request: Request, error: RequestValidationError) -> Response:
        found = [
            Fault(where="/".join(map(str, one["loc"])), what=NOT_JSON if _unread(one) else printable(one["msg"]))
            for one in error.errors()[:MOST_FAULTS]
        ]
        what = f"{found[0].where}: {found[0].what}" if found else "the request does not have the form"
        malformed = any(one["type"] == "json_invalid" for one in error.errors())
        mend = "send a JSON body" if malformed else "see /docs for the form of this request"
        if any(map(_unread, error.errors())):
            mend = "send JSON with the header Content-Type: application/json"
        return told(request, Problem(400 if malformed else 422, what, mend, faults=found))

    @app.exception_handler(HTTPException)
    def on_http(request: Request, error: HTTPException) -> Response:
        said = {
            404: ("there is nothing at this path", "see /docs for the paths there are"),
            405: ("this path does not take this method", "see /docs for the methods of this path"),
        }
        what, mend = said.get(error.status_code, (error.detail, "see /docs"))
        problem = Problem(error.status_code, f"{request.method} {request.url.path}: {what}", mend)
        problem.headers |= dict(error.headers or {})
        return told(request, problem)

    @app.exception_handler(UnicodeError)
    @app.exception_handler(DataError)
    def on_unstorable(request: Request, _: Exception) -> Response:
        what = "the request holds characters that cannot be stored"
        return told(request, Problem(422, what, "leave out NUL and halves of surrogate pairs"))

    @app.exception_handler(DBAPIError)
    @app.exception_handler(TimeoutError)
    def on_database(request: Request, error: DBAPIError | TimeoutError) -> Response:
        return told(request, from_database(error))

    @app.exception_handler(OSError)
    def on_disk(request: Request, error: OSError) -> Response:
        return told(request, full_disk()) if is_full(error) else on_bug(request, error)

    @app.exception_handler(ClientDisconnect)
    def on_gone(request: Request, _: ClientDisconnect) -> JSONResponse:
        log.info("%s %s: the client went away", request.method, request.url.path)
        return Problem(400, "the body ended early", "send all of it").response()

    @app.exception_handler(Exception)
    def on_bug(request: Request, error: Exception) -> Response:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return told(request, Problem(500, "the service failed on this request", "try again; if it stays, report it"))
