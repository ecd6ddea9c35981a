"""`placement solve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.captures import CaptureArguments, open_captures
from placement.cli.option_groups import ClusterOptions, RunOptions, SearchOptions
from placement.cli.option_texts import moves_of, ranks_of
from placement.cli.outputs import output_file
from placement.cli.shared import LostRanks

CHANGE = "Change of a map in use"


def solve_command(
    traces: CaptureArguments,
    shape: ClusterOptions,
    search: SearchOptions,
    run: RunOptions,
    output: Annotated[Path, output_file("-o", "--output", help="Placement file to write.")] = Path("placement.json"),
    current: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Placement file in use: the answer is a change of that map.", rich_help_panel=CHANGE
        ),
    ] = None,
    lost_ranks: LostRanks = None,
    max_moves: Annotated[
        str | None,
        typer.Option(
            metavar="N|N/layer",
            help="Slots whose weights may move: of all layers together, of each layer, or both as 40,2/layer.",
            rich_help_panel=CHANGE,
        ),
    ] = None,
) -> None:
    """Find a placement for the experts in TRACES (or in counts) and measure it beside linear and eplb."""
    from placement.cli.written import finish
    from placement.documents.placement import load_placement
    from placement.pipeline.solve import solve

    in_all, in_each = moves_of(max_moves)
    options = search.of(max_moves=in_all, max_moves_per_layer=in_each)
    lost = ranks_of(lost_ranks)
    in_use = None if current is None else load_placement(current)[0]
    source = open_captures(traces, run.top_k)
    cluster = shape.of(source.model.num_experts)
    with run.running() as how:
        solution = solve(
            source, cluster, options, current=in_use, lost_ranks=lost, by_domain=run.report is not None, **how
        )
    finish(solution, output=output, run=run)
