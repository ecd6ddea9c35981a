"""`placement front`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from placement.cli.option_groups import ClusterOptions, RunOptions, SearchOptions
from placement.cli.outputs import output_file, output_folder
from placement.cli.shared import Traces, open_any


def front_command(
    traces: Traces,
    shape: ClusterOptions,
    search: SearchOptions,
    run: RunOptions,
    output: Annotated[Path, output_file("-o", "--output", help="Placement file to write.")] = Path("placement.json"),
    front_out: Annotated[Path, output_folder(help="Folder for the maps, front.json and a plot.")] = Path("front"),
) -> None:
    """Find the whole front of sends against imbalance: a placement for every price of imbalance."""
    from placement.cli.written import finish
    from placement.pipeline.documents.front_files import PLOT_FILE, save_front
    from placement.pipeline.front import solve_front
    from placement.report.front.front_report import front_svg, front_table
    from placement.support.atomic_files import write_atomic

    source = open_any(traces, run.top_k)
    cluster = shape.of(source.model.num_experts)
    with run.running() as how:
        front = solve_front(source, cluster, search.of(), by_domain=run.report is not None, **how)
    save_front(front_out, front)
    write_atomic(front_out / PLOT_FILE, front_svg(front))
    finish(front.solution, output=output, run=run, tables=[front_table(front)], also=[front_out])
