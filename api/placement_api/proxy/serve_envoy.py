"""Start the external processor, follow its files, end it."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from envoy.service.ext_proc.v3.external_processor_pb2 import ProcessingRequest, ProcessingResponse
from prometheus_client import start_http_server

from placement.errors import OptionError
from placement_api.proxy.decide import Decider
from placement_api.proxy.envoy import Processor
from placement_api.proxy.follow import Follower, warm
from placement_api.proxy.homes import Homes
from placement_api.proxy.metrics import Metrics
from placement_api.proxy.tables import Files
from placement_api.proxy.tokens import Tokens

SERVICE, HEALTH = "envoy.service.ext_proc.v3.ExternalProcessor", "grpc.health.v1.Health"
SERVING = b"\x08\x01"  # grpc.health.v1.HealthCheckResponse
ENDPOINT = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:,\[\]]+):([0-9]{1,5})")
MORE_BYTES = 1 << 20  # of a message, beside a body

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvoyRoute:
    """What `placement envoy` was asked for.

    Attributes:
        files: The map and the grouping.
        endpoints: `host:port` of the engines, in the order of nodes or ranks.
        tokenizer: The model's `tokenizer.json`; None: only prompts that are ids are looked at.
        host: Address to listen on.
        port: Port to listen on; 0 takes a free one.
        metrics_port: Port of the Prometheus series; None: they are not served.
        body_bytes: Largest body that is read.
        drain_s: Seconds that requests may still take when the processor is told to end.
    """

    files: Files
    endpoints: tuple[str, ...]
    tokenizer: Path | None = None
    host: str = "127.0.0.1"
    port: int = 9002
    metrics_port: int | None = None
    body_bytes: int = 16 << 20
    drain_s: float = 300.0

    def __post_init__(self) -> None:
        for one in self.endpoints:
            found = ENDPOINT.fullmatch(one)
            if found is None or not 0 < int(found[2]) < 1 << 16:
                raise OptionError(f"--endpoint {one!r:.100} is no HOST:PORT; write it as Envoy knows it: 10.0.0.1:8000")
        if len(self.endpoints) < 2:
            raise OptionError("one --endpoint leaves nothing to choose; give one for each node or rank")


def serve_envoy(route: EnvoyRoute) -> None:
    """Listen until told to end.

    Raises:
        PlacementError: A file or an option is not sound.
    """
    tables = route.files.load()
    tokens = None if route.tokenizer is None else Tokens(route.tokenizer)
    metrics, homes = Metrics(), Homes(tables)
    warm(homes, tokens)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("placement_api").setLevel(logging.INFO)
    processor = Processor(Decider(homes, tokens, None, metrics), route.endpoints, route.body_bytes)
    metrics.watch_loads(tables.router.num_nodes, homes.load_N)
    if route.metrics_port is not None:
        try:
            start_http_server(route.metrics_port, addr=route.host, registry=metrics.registry)
        except (OSError, OverflowError) as error:
            where = f"{route.host}:{route.metrics_port}"
            raise OptionError(f"cannot serve series on {where}: {error}; give another --metrics-port") from None
    with suppress(KeyboardInterrupt):
        asyncio.run(_run(processor, route, Follower(route.files, homes, metrics)))


async def _run(processor: Processor, route: EnvoyRoute, follower: Follower) -> None:
    limit = route.body_bytes + MORE_BYTES
    limits = [(f"grpc.max_{way}_message_length", limit) for way in ("receive", "send")]
    server = grpc.aio.server(options=[*limits, ("grpc.so_reuseport", 0)])  # two on one port would share requests
    process = grpc.stream_stream_rpc_method_handler(
        processor.process,
        request_deserializer=ProcessingRequest.FromString,
        response_serializer=ProcessingResponse.SerializeToString,
    )
    check = grpc.unary_unary_rpc_method_handler(_healthy)
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(SERVICE, {"Process": process}),
            grpc.method_handlers_generic_handler(HEALTH, {"Check": check}),
        )
    )
    try:
        port = server.add_insecure_port(f"{route.host}:{route.port}")
    except RuntimeError:
        port = 0
    if not port:
        raise OptionError(f"cannot listen on {route.host}:{route.port}; give another --host or --port")
    ended = asyncio.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(name, ended.set)
    await server.start()
    following = asyncio.create_task(follower.follow())
    logger.info("listening on %s:%d for Envoy, %d endpoints", route.host, port, len(route.endpoints))
    await ended.wait()
    following.cancel()
    await server.stop(route.drain_s)


async def _healthy(_request: bytes, _context: object) -> bytes:
    return SERVING
