"""Errors as `application/problem+json` (RFC 9457): what is wrong, what is allowed, how to mend it."""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable
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

    People who ask for a page that is not there get one, of `explain`.
    """

    @app.exception_handler(Problem)
    def on_problem(_: Request, error: Problem) -> JSONResponse:
        return error.response()

    @app.exception_handler(PlacementError)
    def on_library_error(_: Request, error: PlacementError) -> JSONResponse:
        return from_library(error).response()

    @app.exception_handler(RequestValidationError)
    def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = [
            Fault(where="/".join(map(str, one["loc"])), what=NOT_JSON if _unread(one) else printable(one["msg"]))
            for one in error.errors()[:MOST_FAULTS]
        ]
        what = f"{found[0].where}: {found[0].what}" if found else "the request does not have the form"
        malformed = any(one["type"] == "json_invalid" for one in error.errors())
        mend = "send a JSON body" if malformed else "see /docs for the form of this request"
        if any(map(_unread, error.errors())):
            mend = "send JSON with the header Content-Type: application/json"
        return Problem(400 if malformed else 422, what, mend, faults=found).response()

    @app.exception_handler(HTTPException)
    def on_http(request: Request, error: HTTPException) -> Response:
        mends = {404: "see /docs for the paths there are", 405: "see /docs for the methods of this path"}
        answer = Problem(
            error.status_code,
            f"{request.method} {request.url.path}: {error.detail}",
            mends.get(error.status_code, "see /docs"),
        )
        answer.headers |= dict(error.headers or {})
        person = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/v1")
        return explain(answer) if person else answer.response()

    @app.exception_handler(UnicodeError)
    @app.exception_handler(DataError)
    def on_unstorable(_: Request, __: Exception) -> JSONResponse:
        what = "the request holds characters that cannot be stored"
        return Problem(422, what, "leave out NUL and halves of surrogate pairs").response()

    @app.exception_handler(DBAPIError)
    @app.exception_handler(TimeoutError)
    def on_database(_: Request, error: DBAPIError | TimeoutError) -> JSONResponse:
        return from_database(error).response()

    @app.exception_handler(OSError)
    def on_disk(request: Request, error: OSError) -> JSONResponse:
        return full_disk().response() if is_full(error) else on_bug(request, error)

    @app.exception_handler(ClientDisconnect)
    def on_gone(request: Request, _: ClientDisconnect) -> JSONResponse:
        log.info("%s %s: the client went away", request.method, request.url.path)
        return Problem(400, "the body ended early", "send all of it").response()

    @app.exception_handler(Exception)
    def on_bug(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem(500, "the service failed on this request", "try again; if it stays, report it").response()
