"""Start the proxy, end it."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from socket import socket
from typing import cast

import uvicorn

from placement.errors import OptionError
from placement_api.lobby import Lobby, most_connections
from placement_api.proxy.app import Proxy
from placement_api.proxy.decide import Decider
from placement_api.proxy.doors import DOORS, Door
from placement_api.proxy.follow import Follower, warm
from placement_api.proxy.homes import Homes
from placement_api.proxy.limits import Limits
from placement_api.proxy.metrics import Metrics
from placement_api.proxy.tables import Files
from placement_api.proxy.tokens import Tokens
from placement_api.proxy.upstream import Address, Upstream
from placement_api.wire import AT_ONCE, Server, bounded, listen

CONNECTIONS_A_REQUEST = 2  # clients keep some for later

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """What `placement route` was asked for.

    Attributes:
        files: The map and the grouping.
        backends: Addresses of the engines.
        engine: Name of the engine's door, one of `doors.DOORS`; empty: each node or rank has a backend of its own.
        instances: Dynamo's worker ids.
        tokenizer: The model's `tokenizer.json`; None: only prompts that are ids are looked at.
        host: Address to listen on.
        port: Port to listen on.
        limits: What a client may take.
    """

    files: Files
    backends: tuple[str, ...]
    engine: str = ""
    instances: tuple[int, ...] = ()
    tokenizer: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    limits: Limits = field(default_factory=Limits)

    def door(self) -> Door | None:
        """Raises OptionError."""
        for one in self.backends:
            Address.of(one)
        if len(self.backends) == 1 and self.engine not in DOORS:
            raise OptionError(f"--engine {self.engine or '(none)'}: one backend needs one of {', '.join(DOORS)}")
        if len(self.backends) > 1 and self.engine:
            raise OptionError("--engine is of one backend; leave it out where each node or rank has a backend")
        if self.instances and self.engine != "dynamo":
            raise OptionError("--instance is of --engine dynamo; leave it out")
        return DOORS[self.engine](self.instances) if self.engine else None


def serve(route: Route) -> None:
    """Listen until told to end.

    Raises:
        PlacementError: A file or an option is not sound.
    """
    door = route.door()
    tables = route.files.load()
    tokens = None if route.tokenizer is None else Tokens(route.tokenizer)
    sockets = listen(route.host, route.port)
    metrics = Metrics()
    homes = Homes(tables)
    warm(homes, tokens)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("placement_api").setLevel(logging.INFO)
    proxy = Proxy(Decider(homes, tokens, door, metrics), lambda: Upstream(route.backends), route.limits, metrics)
    lobby = Lobby(most=most_connections(CONNECTIONS_A_REQUEST * route.limits.requests), head_s=route.limits.head_s)
    config = uvicorn.Config(
        proxy,
        log_config=None,
        access_log=False,
        loop="asyncio",
        http=bounded(lobby),
        backlog=AT_ONCE,
        ws="none",
        interface="asgi3",
        proxy_headers=False,
        timeout_keep_alive=math.ceil(route.limits.head_s),
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=int(route.limits.drain_s),
    )
    read = "no prompts" if tokens is None else f"prompts by {tokens.package}"
    logger.info("listening on %s:%d, %d nodes, %s", route.host, route.port, tables.router.num_nodes, read)
    with suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_run(Server(config), sockets, Follower(route.files, homes, metrics)))


def fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Of uvloop where it is installed; None: asyncio's own."""
    if find_spec("uvloop") is None:
        return None
    import uvloop

    return cast(Callable[[], asyncio.AbstractEventLoop], uvloop.new_event_loop)


async def _run(server: Server, sockets: list[socket], follower: Follower) -> None:
    following = asyncio.create_task(follower.follow())
    try:
        await server.serve(sockets=sockets)
    finally:
        following.cancel()
