"""`placement route`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.extras import check_extra

LIMITS = "Limits"
MIB = 1 << 20


def route_command(
    map_file: Annotated[Path, typer.Option("--map", help="Placement file that the engines run.")],
    grouping: Annotated[Path, typer.Option(help="Grouping file for this map.")],
    backend: Annotated[
        list[str], typer.Option(metavar="URL", help="Address of the engine; again for more: one a node, or one a rank.")
    ],
    engine: Annotated[
        str, typer.Option(help="What one backend is: vllm, sglang, sglang-disagg or dynamo. [default: none]")
    ] = "",
    ranks: Annotated[
        int | None, typer.Option(min=1, help="Data-parallel ranks of one backend. [default: one for each GPU]")
    ] = None,
    instance: Annotated[
        list[int] | None, typer.Option(help="Worker id of Dynamo; again for one for each rank. [default: none]")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="The model's tokenizer.json. [default: only prompts of ids are looked at]")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8080,
    max_body_mib: Annotated[int, typer.Option(min=1, help="Largest body, MiB.", rich_help_panel=LIMITS)] = 64,
    max_requests: Annotated[
        int, typer.Option(min=1, help="Requests at a time; more are refused.", rich_help_panel=LIMITS)
    ] = 4096,
    head_seconds: Annotated[
        float, typer.Option(min=0.1, help="Seconds in which a request's head has to come.", rich_help_panel=LIMITS)
    ] = 60.0,
    drain_seconds: Annotated[
        int, typer.Option(min=0, help="Seconds that answers may still take at the end.", rich_help_panel=LIMITS)
    ] = 300,
) -> None:
    """Stand in front of engines: give every request its home, and pass all else on as it comes."""
    check_extra("this", "route", "httptools", "uvicorn", "prometheus_client")
    from placement_api.proxy.limits import Limits
    from placement_api.proxy.serve import Route, serve
    from placement_api.proxy.tables import Files

    serve(
        Route(
            files=Files(map_file=map_file, grouping_file=grouping, backends=len(backend), ranks=ranks),
            backends=tuple(backend),
            engine=engine,
            instances=tuple(instance or ()),
            tokenizer=tokenizer,
            host=host,
            port=port,
            limits=Limits(
                body_bytes=max_body_mib * MIB, requests=max_requests, head_s=head_seconds, drain_s=drain_seconds
            ),
        )
    )
