"""Start the service."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import nullcontext
from socket import socket

import uvicorn

from placement.errors import OptionError, PlacementError
from placement.support.atomic_files import make_folder
from placement_api.app import create_app
from placement_api.hits import Hits
from placement_api.jobs.ahead import compile_ahead
from placement_api.lobby import Lobby, most_connections
from placement_api.logs import start_logs
from placement_api.service import Service, make_service
from placement_api.settings import Settings
from placement_api.store.locked import locked
from placement_api.wire import AT_ONCE, Server, bounded, listen

SWITCH_S = 0.0005  # how long a thread that computes may keep the event loop from what just came
log = logging.getLogger("placement.service")


def serve(settings: Settings) -> None:
    """Listen until told to end.

    Raises:
        OptionError: Anyone could reach a service without tokens, another service has the folder, or the port is taken.
        InputError: The database or the queue of jobs cannot be used.
    """
    make_folder(settings.data)
    # hosts that share a database may share the folder too
    with nullcontext() if settings.database_url else locked(settings.data):
        service = make_service(settings)
        try:
            _check_door(service)
            sockets = listen(settings.host, settings.port)
            start_logs(access=settings.access_log)
            compile_ahead()
            service.start()
        except PlacementError:
            service.database.close()
            raise
        log.info("listening on http://%s:%d", settings.host, settings.port)
        _run(service, sockets)
        os._exit(0)  # jobs that run are begun again at the next start, as after a crash


def _check_door(service: Service) -> None:
    if not service.settings.loopback and not service.tokens.exist():
        raise OptionError(
            f"--host {service.settings.host} can be reached from other machines, and there is no token; make one with "
            f"placement token create, or leave --host out"
        )


def _run(service: Service, sockets: list[socket]) -> None:
    limits = service.settings.limits
    lobby = Lobby(most=most_connections(limits.connections), head_s=limits.head_s)
    config = uvicorn.Config(
        create_app(service),
        log_config=None,
        access_log=False,
        loop="asyncio",  # uvloop answers more a second, and some connections far later than others
        backlog=AT_ONCE,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    config.http = bounded(lobby, Hits(service, config.forwarded_allow_ips))
    sys.setswitchinterval(SWITCH_S)
    Server(config).run(sockets)
