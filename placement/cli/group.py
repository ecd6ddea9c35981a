"""`placement group`, and what `placement solve --group` shows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placement.cli.outputs import output_file
from placement.cli.shared import (
    Holdout,
    Json,
    MapCluster,
    ReplicaChoice,
    Seed,
    Traces,
    Transport,
    Workers,
    print_json,
    progress_listener,
    stdout_console,
)
from placement.core.choices import TOKEN_TOLERANCE
from placement.support.atomic_files import write_atomic

if TYPE_CHECKING:
    from placement.pipeline.grouped_solution import GroupedSolution

HomeFrom = Annotated[
    str | None,
    typer.Option(
        help="What the home of a new request is decided from: prefill, or the share of its tokens that come first. "
        "[default: prefill where the trace has it and decode, else 0.25]"
    ),
]
TokenTolerance = Annotated[float, typer.Option(help="How many tokens more than its share a node may get.")]


def group_command(
    traces: Traces,
    map_file: Annotated[Path, typer.Option("--map", help="Placement file to group the requests for.")],
    output: Annotated[Path, output_file("-o", "--output", help="Grouping file to write.")] = Path("grouping.json"),
    cluster: MapCluster = None,
    home_from: HomeFrom = None,
    token_tolerance: TokenTolerance = TOKEN_TOLERANCE,
    replica_choice: ReplicaChoice = "min-nodes",
    transport: Transport = "node",
    holdout: Holdout = 0.2,
    seed: Seed = 0,
    workers: Workers = None,
    report: Annotated[Path | None, output_file(help="HTML report to write.")] = None,
    json_output: Json = False,
) -> None:
    """Group the requests in TRACES by home node for a placement that exists, and fit a router for new ones."""
    from placement.core.cluster import Cluster
    from placement.documents.cluster_yaml import cluster_from_yaml
    from placement.documents.placement_json import load_placement
    from placement.grouping.grouping_json import save_grouping
    from placement.pipeline.documents.grouping_document import grouping_document
    from placement.pipeline.with_homes import solve_grouped
    from placement.solvers.options import Options
    from placement.traces.trace import open_trace

    placement, file = load_placement(map_file)
    trace = open_trace(traces)
    described = file.described_cluster() or Cluster(**dict(file.cluster))
    if cluster is not None:
        described = cluster_from_yaml(cluster, placement.model.num_experts)
    with progress_listener(quiet=json_output) as listener:
        grouped = solve_grouped(
            trace,
            described,
            Options(replica_choice=replica_choice, transport=transport, seed=seed),
            placement=placement,
            holdout=holdout,
            home_from=home_from,
            tolerance=token_tolerance,
            workers=workers,
            listener=listener,
        )
    document = grouping_document(grouped)
    save_grouping(output, document)
    if report is not None:
        from placement.report.solution.solution_page import report_html  # jinja2 is loaded only for a report

        write_atomic(report, report_html(grouped.solution, grouped=grouped))
    if json_output:
        print_json(document)
        return
    show_grouping(grouped)
    written = " and ".join(str(path) for path in (output, report) if path is not None)
    stdout_console().print(f"wrote {written}", highlight=False, markup=False, soft_wrap=True)


def show_grouping(grouped: GroupedSolution) -> None:
    """The tables of gains and of domains."""
    from placement.report.solution.grouping_tables import domains_table, gains_table

    console = stdout_console()
    console.print(gains_table(grouped))
    console.print()
    console.print(domains_table(grouped))
