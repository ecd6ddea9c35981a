"""The application."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from placement.files import make_folder
from placement.version import VERSION
from placement_api import problems
from placement_api.middleware import Guard
from placement_api.routes import jobs, maps, operations, pages, placement_pages, placements, traces
from placement_api.service import make_service
from placement_api.settings import Settings

ABOUT = """Places the experts of Mixture-of-Experts models on nodes and GPUs so that tokens stay local.

Bodies and answers are those of the command line: options and clusters have the same keys, placements are files of
schema `expert-placement/1`. Errors are `application/problem+json`: what is wrong, and how to mend it."""


def create_app(settings: Settings) -> FastAPI:
    """The service as an ASGI application; one a process. It opens the store and the queue when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        service = await run_in_threadpool(make_service, settings)
        app.state.service = service
        await run_in_threadpool(service.jobs.start)
        # uploads are large: not in a /tmp of memory. After the start of jobs, whose sockets need short paths
        make_folder(settings.uploads)
        tempfile.tempdir = str(settings.uploads)
        service.retention.start()
        yield
        service.retention.stop()
        await run_in_threadpool(service.jobs.stop)
        service.database.close()

    app = FastAPI(
        title="placement", version=VERSION, description=ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    problems.install(app)

    @app.middleware("http")
    async def measure(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        began = time.perf_counter()
        response = await answer(request)
        route = getattr(request.scope.get("route"), "path", "none")
        metrics = request.app.state.service.metrics
        metrics.requests.labels(request.method, route, str(response.status_code)).inc()
        metrics.seconds.labels(route).observe(time.perf_counter() - began)
        return response

    app.add_middleware(Guard, limits=settings.limits, loopback=settings.loopback)
    for routes in (traces, placements, maps, jobs, operations, pages, placement_pages):
        app.include_router(routes.router)
    return app
