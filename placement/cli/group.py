"""`placement group`."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from placement.cli.executor import parse_workers
from placement.cli.option_groups import ClusterOptions, RunOptions, SearchOptions
from placement.cli.outputs import output_file
from placement.cli.shared import Traces, open_any, print_json, stdout_console
from placement.core.choices import TOKEN_TOLERANCE
from placement.errors import OptionError

if TYPE_CHECKING:
    from placement.core.cluster import Cluster
    from placement.documents.placement import PlacementFile
    from placement.pipeline.grouped_solution import GroupedSolution

HOMES = "Homes of requests"


def group_command(
    traces: Traces,
    shape: ClusterOptions,
    search: SearchOptions,
    run: RunOptions,
    output: Annotated[Path, output_file("-o", "--output", help="Grouping file to write.")] = Path("grouping.json"),
    placement_out: Annotated[
        Path | None, output_file(help="Placement file to write, without --map. [default: placement.json]")
    ] = None,
    map_file: Annotated[
        Path | None,
        typer.Option("--map", help="Placement file to group the requests for; without it one is found, too."),
    ] = None,
    home_from: Annotated[
        str | None,
        typer.Option(
            help="What the home of a new request is decided from: prefill, or the share of its tokens that come first. "
            "[default: prefill where the trace has it and decode, else 0.25]",
            rich_help_panel=HOMES,
        ),
    ] = None,
    token_tolerance: Annotated[
        float, typer.Option(help="How many tokens more than its share a node may get.", rich_help_panel=HOMES)
    ] = TOKEN_TOLERANCE,
) -> None:
    """Group the requests in TRACES by home node, with the placement of the experts or for a map that exists."""
    from placement.documents.placement import PlacementFile, load_placement
    from placement.pipeline.documents.grouping_document import grouping_file
    from placement.pipeline.solution import solution_document
    from placement.pipeline.with_homes import solve_grouped
    from placement.support.atomic_files import write_together

    if map_file is not None and placement_out is not None:
        raise OptionError("--placement-out writes the placement that is found, and --map gives one; leave one out")
    if parse_workers(run.workers)[1] is not None:
        raise OptionError(f"workers={run.workers!r}: requests are grouped by threads; give a number of threads")
    if map_file is not None:
        _check_search(search)
    source = open_any(traces, run.top_k)
    placement, file = (None, None) if map_file is None else load_placement(map_file)
    cluster = shape.of(source.model.num_experts) if file is None else _cluster_of(file, shape)
    with run.running() as how:
        how.pop("engine")
        grouped = solve_grouped(
            source,
            cluster,
            search.of(),
            placement=placement,
            home_from=home_from,
            tolerance=token_tolerance,
            **how,
        )
    grouping = grouping_file(grouped)
    contents: dict[Path, bytes | str] = {output: grouping.content()}
    if placement is None:
        placement_out = placement_out or Path("placement.json")
        contents[placement_out] = PlacementFile.encode(solution_document(grouped.solution))
    if run.report is not None:
        from placement.report.solution.solution_page import report_html  # jinja2 is loaded only for a report

        contents[run.report] = report_html(grouped.solution, grouped=grouped)
    write_together(contents)
    if run.json_output:
        print_json(grouping.document())
        return
    _show(grouped, whole=placement is None)
    written = " and ".join(str(path) for path in (placement_out, output, run.report) if path is not None)
    stdout_console().print(f"wrote {written}", highlight=False, markup=False, soft_wrap=True)


def _check_search(search: SearchOptions) -> None:
    """Refuse options of a search that is not made: for a map that exists only homes are found."""
    measured = ("transport", "replica_choice", "seed")
    others = [one for one in fields(search) if one.name not in measured and getattr(search, one.name) != one.default]
    if others:
        given = ", ".join(f"--{one.name.replace('_', '-')}" for one in others)
        raise OptionError(f"{given} would find a map, and --map gives one; leave one out")


def _cluster_of(file: PlacementFile, shape: ClusterOptions) -> Cluster:
    """The cluster of a placement file, or of cluster.yaml."""
    from placement.core.cluster import Cluster
    from placement.documents.cluster_yaml import cluster_from_yaml

    numbers = {name: value for name, value in asdict(shape).items() if name != "cluster" and value is not None}
    if numbers:
        given = ", ".join(f"--{name.replace('_', '-')}" for name in numbers)
        raise OptionError(f"{given} and --map both say the shape; leave one out")
    if shape.cluster is not None:
        return cluster_from_yaml(shape.cluster, file.model.num_experts)
    return file.described_cluster() or Cluster(**file.cluster.sizes())


def _show(grouped: GroupedSolution, *, whole: bool) -> None:
    """The tables of gains and of domains, after the table and before the headline of a solve."""
    from placement.report.solution.grouping_tables import domains_table, gains_table, sources_table
    from placement.report.solution.solution_tables import comparison_table, headline

    console = stdout_console()
    if whole:
        console.print(comparison_table(grouped.solution))
    console.print(gains_table(grouped))
    console.print()
    if grouped.homes.sources:
        console.print(sources_table(grouped))
        console.print()
    console.print(domains_table(grouped))
    if whole:
        console.print(headline(grouped.solution), highlight=False, markup=False)
