"""`placement robust`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.captures import CaptureArguments, open_captures
from placement.cli.option_groups import ClusterOptions, RunOptions, SearchOptions
from placement.cli.outputs import output_file
from placement.cli.shared import open_any
from placement.core.choices import CAPTURES, PARTINGS

Parting = typer.Option(help=f"How the traffic is parted: {', '.join(PARTINGS)}.")


def robust_command(
    traces: CaptureArguments,
    shape: ClusterOptions,
    search: SearchOptions,
    run: RunOptions,
    parts: Annotated[str, Parting] = CAPTURES,
    output: Annotated[Path, output_file("-o", "--output", help="Placement file to write.")] = Path("placement.json"),
) -> None:
    """Find the placement whose worst part of the traffic costs least, beside the plain one."""
    from placement.cli.written import finish
    from placement.pipeline.solve import solve

    source = open_captures(traces, run.top_k) if parts == CAPTURES else open_any(traces, run.top_k)
    cluster = shape.of(source.model.num_experts)
    with run.running() as how:
        solution = solve(source, cluster, search.of(), robust=parts, **how)
    finish(solution, output=output, run=run)
