"""The application."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Response
from starlette.concurrency import run_in_threadpool

from placement import __version__
from placement_api import problems
from placement_api.description import describe
from placement_api.measure import Measure
from placement_api.middleware import Guard
from placement_api.pages.render import page
from placement_api.routes import (
    advice,
    front,
    jobs,
    maps,
    names,
    names_pages,
    operations,
    page_actions,
    pages,
    placement_pages,
    placements,
    study,
    trace_pages,
    traces,
)
from placement_api.service import Service

ABOUT = """Places the experts of Mixture-of-Experts models on nodes and GPUs so that tokens stay local.

Bodies and answers are those of the command line: options and clusters have the same keys, placements are files of
schema `expert-placement/1`. Errors are `application/problem+json`: what is wrong, and how to mend it."""


def create_app(service: Service) -> FastAPI:
    """A service that was started as an ASGI application, which stops it; one a process."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        gc.freeze()  # the libraries stay: a full collection need not look at them, which would take 0.1 s
        yield
        await run_in_threadpool(service.stop)

    app = FastAPI(
        title="placement", version=__version__, description=ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    app.state.service = service
    problems.install(app, _explain)
    describe(app)

    app.add_middleware(Guard, limits=service.settings.limits, explain=_explain)
    app.add_middleware(Measure)
    for routes in (traces, placements, maps, names, advice, study, front, jobs, operations):
        app.include_router(routes.router)
    for routes in (pages, trace_pages, placement_pages, page_actions, names_pages):
        app.include_router(routes.router)
    return app


def _explain(problem: problems.Problem) -> Response:
    answer = page("error", status=problem.status, problem=problem.body)
    answer.headers.update(problem.headers)
    return answer
