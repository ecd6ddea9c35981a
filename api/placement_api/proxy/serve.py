"""Start the proxy, end it."""

from __future__ import annotations

import asyncio
import logging
import resource
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from placement.errors import OptionError
from placement_api.proxy.app import Proxy
from placement_api.proxy.decide import Decider
from placement_api.proxy.doors import DOORS, Door
from placement_api.proxy.follow import Follower, warm
from placement_api.proxy.homes import Homes
from placement_api.proxy.limits import Limits
from placement_api.proxy.metrics import Metrics
from placement_api.proxy.tables import Files
from placement_api.proxy.tokens import Tokens
from placement_api.proxy.upstream import Upstream, backend_url
from placement_api.proxy.wire import TimedHttp

FILES = 256  # that are open besides connections, at most

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
            backend_url(one)
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
    metrics = Metrics()
    homes = Homes(tables)
    warm(homes, tokens)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("placement_api").setLevel(logging.INFO)
    _allow_connections(route.limits.requests)
    proxy = Proxy(Decider(homes, tokens, door, metrics), lambda: Upstream(route.backends), route.limits, metrics)
    server = uvicorn.Server(
        uvicorn.Config(
            proxy,
            host=route.host,
            port=route.port,
            log_config=None,
            access_log=False,
            loop="asyncio",
            http=type("Http", (TimedHttp,), {"head_s": route.limits.head_s}),
            ws="none",
            interface="asgi3",
            proxy_headers=False,
            timeout_keep_alive=75,  # seconds, as other proxies do
            server_header=False,
            date_header=False,
            timeout_graceful_shutdown=int(route.limits.drain_s),
        )
    )
    read = "no prompts" if tokens is None else f"prompts by {tokens.package}"
    logger.info("listening on %s:%d, %d nodes, %s", route.host, route.port, tables.router.num_nodes, read)
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(server, Follower(route.files, homes, metrics)))


async def _run(server: uvicorn.Server, follower: Follower) -> None:
    following = asyncio.create_task(follower.follow())
    try:
        await server.serve()
    finally:
        following.cancel()


def _allow_connections(requests: int) -> None:
    """Raise this process's limit of open files as far as two connections for each request need, or the system lets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * requests + FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
        if most < wanted:
            logger.warning(
                "only %d files may be open, which %d requests at a time may need; see ulimit -n", most, requests
            )
