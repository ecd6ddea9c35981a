"""`placement envoy`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.extras import check_extra

MIB = 1 << 20


def envoy_command(
    map_file: Annotated[Path, typer.Option("--map", help="Placement file that the engines run.")],
    grouping: Annotated[Path, typer.Option(help="Grouping file for this map.")],
    endpoint: Annotated[
        list[str],
        typer.Option(metavar="HOST:PORT", help="Address of an engine as Envoy knows it; again for each node or rank."),
    ],
    tokenizer: Annotated[
        Path | None, typer.Option(help="The model's tokenizer.json. [default: only prompts of ids are looked at]")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 9002,
    metrics_port: Annotated[int | None, typer.Option(help="Port of the Prometheus series. [default: none]")] = None,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest body that is read, MiB.")] = 16,
    drain_seconds: Annotated[int, typer.Option(min=0, help="Seconds that requests may still take at the end.")] = 300,
) -> None:
    """Tell Envoy or an endpoint picker, such as llm-d's, at which endpoints a request is at home."""
    check_extra("this", "envoy", "grpc", "xds", "prometheus_client")
    from placement_api.proxy.serve_envoy import EnvoyRoute, serve_envoy
    from placement_api.proxy.tables import Files

    serve_envoy(
        EnvoyRoute(
            files=Files(map_file=map_file, grouping_file=grouping, backends=len(endpoint)),
            endpoints=tuple(endpoint),
            tokenizer=tokenizer,
            host=host,
            port=port,
            metrics_port=metrics_port,
            body_bytes=max_body_mib * MIB,
            drain_s=drain_seconds,
        )
    )
