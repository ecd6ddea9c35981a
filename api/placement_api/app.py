"""The application."""

from __future__ import annotations

import gc
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool

from placement import __version__
from placement.support.atomic_files import make_folder
from placement_api import problems
from placement_api.hits import Hits
from placement_api.measure import Measure
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
        gc.freeze()  # the libraries stay: a full collection need not look at them, which would take 0.1 s
        yield
        service.retention.stop()
        await run_in_threadpool(service.jobs.stop)
        service.database.close()

    app = FastAPI(
        title="placement", version=__version__, description=ABOUT, lifespan=lifespan, docs_url=None, redoc_url=None
    )
    problems.install(app)

    app.add_middleware(Hits)
    app.add_middleware(Guard, limits=settings.limits, loopback=settings.loopback)
    app.add_middleware(Measure)
    for routes in (traces, placements, maps, jobs, operations, pages, placement_pages):
        app.include_router(routes.router)
    return app
