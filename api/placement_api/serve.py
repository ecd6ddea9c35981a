"""Start the service."""

from __future__ import annotations

import logging
import os

import uvicorn

from placement.errors import OptionError
from placement.support.atomic_files import make_folder
from placement_api.app import create_app
from placement_api.service import open_store
from placement_api.settings import Settings
from placement_api.tokens import Tokens
from placement_api.wire import BoundedHttp


def serve(settings: Settings) -> None:
    """Listen until told to end. Raises OptionError where anyone could reach a service without tokens."""
    make_folder(settings.data)
    database = open_store(settings)
    tokens = Tokens(database=database, requests_per_s=settings.limits.requests_per_s)
    if not settings.loopback and not tokens.exist():
        raise OptionError(
            f"--host {settings.host} can be reached from other machines, and there is no token; make one with "
            f"placement token create, or leave --host out"
        )
    database.close()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        loop="asyncio",  # uvloop answers more a second, and some connections far later than others
        http=BoundedHttp,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    os._exit(0)  # jobs that run are begun again at the next start, as after a crash
