"""`placement solve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from placement.cli.shared import (
    Json,
    ReplicaChoice,
    Traces,
    Transport,
    Workers,
    cluster_from_options,
    open_input,
    print_json,
    progress_listener,
    stdout_console,
)
from placement.errors import OptionError
from placement.files import check_writable, write_atomic
from placement.placement_json import save_placement
from placement.problem import BALANCE_WEIGHT, BOUNDS, OBJECTIVES, Options
from placement.report.part_tables import terminal_part_table
from placement.report.tables import comparison_table, headline
from placement.solve import solution_document, solve
from placement.solvers import SOLVERS
from placement.traces.parts import PARTINGS


def solve_command(
    traces: Traces,
    output: Annotated[Path, typer.Option("-o", "--output", help="Placement file to write.")] = Path("placement.json"),
    nodes: Annotated[int | None, typer.Option(help="Machines of the EP group.")] = None,
    gpus_per_node: Annotated[
        int | None, typer.Option(help="GPUs of a machine. [default: the largest of 8, 4, 2, 1 that all get an expert]")
    ] = None,
    slots_per_gpu: Annotated[int | None, typer.Option(help="Experts that a GPU holds of each layer.")] = None,
    redundant_experts: Annotated[int | None, typer.Option(help="Slots beyond one for each expert.")] = None,
    cluster: Annotated[Path | None, typer.Option(help="cluster.yaml, instead of the four options above.")] = None,
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(SOLVERS)}.")] = "auto",
    balance_weight: Annotated[
        float, typer.Option(help="Sends per token that one unit of rank imbalance (max/mean) is worth.")
    ] = BALANCE_WEIGHT,
    max_imbalance: Annotated[
        float | None, typer.Option(help="Hard cap on every layer's rank imbalance on the training requests.")
    ] = None,
    max_node_imbalance: Annotated[float | None, typer.Option(help="The same for nodes.")] = None,
    objective: Annotated[str, typer.Option(help=f"What is best: {', '.join(OBJECTIVES)}.")] = "locality",
    top_k: Annotated[
        int | None, typer.Option(help="Experts that a token visits, where TRACES is a file of counts without it.")
    ] = None,
    transport: Transport = "node",
    replica_choice: ReplicaChoice = "min-nodes",
    bound: Annotated[
        str, typer.Option(help=f"Proof of how good the answer is: {', '.join(BOUNDS)}; tight takes seconds a layer.")
    ] = "quick",
    holdout: Annotated[float, typer.Option(help="Share of the requests to measure on, not to fit; 0 fits all.")] = 0.2,
    robust: Annotated[
        str | None,
        typer.Option(help=f"Minimize the worst part of the traffic, parted by {', '.join(PARTINGS)}."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for solving; the answer then depends on the machine.")
    ] = None,
    work_limit: Annotated[int | None, typer.Option(help="Moves that a search proposes per layer.")] = None,
    workers: Workers = None,
    report: Annotated[Path | None, typer.Option(help="HTML report to write.")] = None,
    json_output: Json = False,
) -> None:
    """Find a placement for the experts in TRACES (or a file of counts) and measure it beside linear and eplb."""
    options = Options(
        solver=solver,
        objective=objective,
        transport=transport,
        balance_weight=balance_weight,
        max_imbalance=max_imbalance,
        max_node_imbalance=max_node_imbalance,
        replica_choice=replica_choice,
        bound=bound,
        seed=seed,
        time_limit_s=time_limit,
        work_limit=work_limit,
    )
    for path in (output, report):
        if path is not None:
            check_writable(path)
    if report is not None and report.resolve() == output.resolve():
        raise OptionError(f"--report and --output are both {output}; give each its own file")
    trace = open_input(traces, top_k)
    shape = cluster_from_options(
        trace.model.num_experts,
        file=cluster,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        slots_per_gpu=slots_per_gpu,
        redundant_experts=redundant_experts,
    )
    with progress_listener(quiet=json_output) as listener:
        solution = solve(trace, shape, options, holdout=holdout, robust=robust, workers=workers, listener=listener)
    document = solution_document(solution)
    save_placement(output, document)
    if report is not None:
        from placement.report.html import report_html  # jinja2 is loaded only for a report

        write_atomic(report, report_html(solution))
    if json_output:
        print_json(document)
        return
    console = stdout_console()
    console.print(comparison_table(solution))
    by_part = terminal_part_table(solution)
    if by_part is not None:
        console.print(by_part)
    console.print(headline(solution), highlight=False, markup=False)
    written = f"wrote {output}" + (f" and {report}" if report is not None else "")
    console.print(written, highlight=False, markup=False, soft_wrap=True)
