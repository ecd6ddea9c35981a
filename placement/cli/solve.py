"""`placement solve`."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Annotated

import typer

from placement.by_class import by_class_document, save_classes, solve_by
from placement.cli.by_class import By, MapsOut, show_classes
from placement.cli.group import HomeFrom, TokenTolerance, show_grouping
from placement.cli.remote import check_remote, solve_remotely
from placement.cli.shared import (
    Json,
    ReplicaChoice,
    Traces,
    Transport,
    Workers,
    cluster_from_options,
    open_counted,
    open_input,
    print_json,
    progress_listener,
    stdout_console,
)
from placement.errors import OptionError
from placement.files import check_folder, check_writable, write_atomic
from placement.group import solve_grouped
from placement.grouping.assign import TOLERANCE
from placement.grouping.grouping_json import save_grouping
from placement.grouping_document import grouping_document
from placement.pareto import PLOT_FILE, save_front, solve_front
from placement.placement_json import document_bytes, load_placement, save_placement
from placement.problem import BALANCE_WEIGHT, BOUNDS, OBJECTIVES, Options
from placement.report.front import front_png, front_table
from placement.report.migration import migration_line
from placement.report.part_tables import terminal_part_table
from placement.report.tables import comparison_table, headline
from placement.solution import solution_document
from placement.solve import HOLDOUT, solve
from placement.solvers import SOLVERS
from placement.traces import Trace
from placement.traces.counted import Counted
from placement.traces.counts_folder import is_counts_folder
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
    no_bound: Annotated[bool, typer.Option("--no-bound", help="The same as --bound none.")] = False,
    given_holdout: Annotated[
        float | None,
        typer.Option(
            "--holdout",
            help=f"Share of the requests to measure on, not to fit; 0 fits all. [default: {HOLDOUT}, or as counted]",
            show_default=False,
        ),
    ] = None,
    robust: Annotated[
        str | None,
        typer.Option(help=f"Minimize the worst part of the traffic, parted by {', '.join(PARTINGS)}."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    time_limit: Annotated[
        float | None, typer.Option(help="Seconds for solving; the answer then depends on the machine.")
    ] = None,
    work_limit: Annotated[int | None, typer.Option(help="Moves that a search proposes per layer.")] = None,
    current: Annotated[
        Path | None, typer.Option("--from", help="Placement file in use now: the answer is a change of that map.")
    ] = None,
    max_moves: Annotated[
        int | None, typer.Option(help="Slots whose weights may move, all layers together; needs --from.")
    ] = None,
    max_moves_per_layer: Annotated[int | None, typer.Option(help="The same for each layer.")] = None,
    migration_out: Annotated[
        Path | None, typer.Option(help="File for the copies to make: slot, expert, from and to rank; needs --from.")
    ] = None,
    pareto: Annotated[
        Path | None,
        typer.Option(help="Folder for the whole front of sends against imbalance: maps, front.json and a plot."),
    ] = None,
    group: Annotated[
        bool, typer.Option("--group", help="Group requests by home node together with placing the experts.")
    ] = False,
    grouping_out: Annotated[
        Path | None, typer.Option(help="File for homes of requests and the router; needs --group.")
    ] = None,
    home_from: HomeFrom = None,
    token_tolerance: TokenTolerance = TOLERANCE,
    by: By = None,
    maps_out: MapsOut = None,
    workers: Workers = None,
    server: Annotated[
        str | None, typer.Option(help="Address of a service (`placement serve`) that solves instead of this machine.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="PLACEMENT_TOKEN", show_envvar=False, help="Token for --server, if it needs one."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="HTML report to write.")] = None,
    json_output: Json = False,
) -> None:
    """Find a placement for the experts in TRACES (or in counts) and measure it beside linear and eplb."""
    options = Options(
        solver=solver,
        objective=objective,
        transport=transport,
        balance_weight=balance_weight,
        max_imbalance=max_imbalance,
        max_node_imbalance=max_node_imbalance,
        replica_choice=replica_choice,
        bound="none" if no_bound else bound,
        seed=seed,
        time_limit_s=time_limit,
        work_limit=work_limit,
        max_moves=max_moves,
        max_moves_per_layer=max_moves_per_layer,
    )
    outputs = {"--output": output, "--report": report, "--migration-out": migration_out, "--grouping-out": grouping_out}
    if group:
        _check_alone("--group", {"--robust": robust, "--from": current, "--pareto": pareto})
    elif grouping_out is not None or home_from is not None:
        raise OptionError("--grouping-out and --home-from are about homes of requests; add --group")
    if by is not None:
        _check_alone("--by", {"--robust": robust, "--from": current, "--pareto": pareto, "--group": group or None})
    elif maps_out is not None:
        raise OptionError("--maps-out is for the maps of classes of traffic; add --by")
    if pareto is not None:
        _check_pareto(pareto, {"--robust": robust, "--from": current})
    for option, folder in (("--pareto", pareto), ("--maps-out", maps_out)):
        if folder is not None:
            _check_own_folder(option, folder, outputs)
    _check_outputs(outputs)
    if migration_out is not None and current is None:
        raise OptionError("--migration-out says how to get from a map to the answer; give that map with --from FILE")
    in_use = None if current is None else load_placement(current)[0]
    trace = open_counted(traces) if any(is_counts_folder(path) for path in traces) else open_input(traces, top_k)
    holdout = HOLDOUT if given_holdout is None else given_holdout
    shape = cluster_from_options(
        trace.model.num_experts,
        file=cluster,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        slots_per_gpu=slots_per_gpu,
        redundant_experts=redundant_experts,
    )
    if isinstance(trace, Counted):
        _check_alone(
            "a folder of counts",
            {
                "--group": group or None,
                "--by": by,
                "--pareto": pareto,
                "--robust": robust,
                "--server": server,
                "--top-k": top_k,
            },
        )
    if server is not None:
        check_remote(
            {
                "--from": current,
                "--group": group,
                "--by": by,
                "--pareto": pareto,
                "--migration-out": migration_out,
                "--workers": workers,
            }
        )
        solve_remotely(
            server,
            token,
            traces,
            shape,
            options,
            top_k=top_k,
            holdout=holdout,
            robust=robust,
            output=output,
            report=report,
            json_output=json_output,
        )
        return
    grouped = front = classes = None
    with progress_listener(quiet=json_output) as listener:
        if group and isinstance(trace, Trace):
            grouped = solve_grouped(
                trace,
                shape,
                options,
                holdout=holdout,
                home_from=home_from,
                tolerance=token_tolerance,
                workers=workers,
                listener=listener,
            )
            solution = grouped.solution
        elif group:
            raise OptionError("--group needs a trace: counts do not say which experts the tokens of a request visit")
        elif by is not None and isinstance(trace, Trace):
            classes = solve_by(trace, shape, options, by=by, holdout=holdout, workers=workers, listener=listener)
            solution = classes.solution
        elif by is not None:
            raise OptionError("--by needs a trace: counts do not say of which class a token is")
        elif pareto is not None and not isinstance(trace, Counted):
            front = solve_front(
                trace,
                shape,
                options,
                holdout=holdout,
                by_domain=report is not None,
                workers=workers,
                listener=listener,
            )
            solution = front.solution
        else:
            solution = solve(
                trace,
                shape,
                options,
                current=in_use,
                holdout=given_holdout,
                robust=robust,
                by_domain=report is not None,
                workers=workers,
                listener=listener,
            )
    document = solution_document(solution) if classes is None else by_class_document(classes)
    if pareto is not None and front is not None:
        save_front(pareto, front)
        write_atomic(pareto / PLOT_FILE, front_png(front))
    save_placement(output, document)
    if grouped is not None and grouping_out is not None:
        save_grouping(grouping_out, grouping_document(grouped))
    if classes is not None and maps_out is not None:
        save_classes(maps_out, classes)
    plan = solution.migration()
    if plan is not None and migration_out is not None:
        write_atomic(migration_out, document_bytes(plan.document(), "copies"))
    if report is not None:
        from placement.report.html import report_html  # jinja2 is loaded only for a report

        write_atomic(report, report_html(solution, grouped=grouped, by_class=classes))
    if json_output:
        print_json(document)
        return
    console = stdout_console()
    console.print(comparison_table(solution))
    if grouped is not None:
        show_grouping(grouped)
    if classes is not None:
        show_classes(classes)
    if front is not None:
        console.print(front_table(front))
    by_part = terminal_part_table(solution)
    if by_part is not None:
        console.print(by_part)
    console.print(headline(solution), highlight=False, markup=False)
    if plan is not None:
        console.print(migration_line(plan), highlight=False, markup=False)
    written = " and ".join(
        str(path) for path in (output, grouping_out, maps_out, migration_out, report, pareto) if path is not None
    )
    console.print(f"wrote {written}", highlight=False, markup=False, soft_wrap=True)


def _check_outputs(outputs: dict[str, Path | None]) -> None:
    """Raise now if a file could not be written later, or if two options name the same one."""
    given = {option: path for option, path in outputs.items() if path is not None}
    for (one, path), (other, same) in combinations(given.items(), 2):
        if path.resolve() == same.resolve():
            raise OptionError(f"{other} and {one} are both {path}; give each its own file")
    for path in given.values():
        check_writable(path)


def _check_alone(option: str, others: dict[str, object]) -> None:
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise OptionError(f"{option} and {' and '.join(given)} do not go together; leave one out")


def _check_pareto(folder: Path, others: dict[str, object]) -> None:
    """Raise now if the front cannot be looked for."""
    given = [name for name, value in others.items() if value is not None]
    if given:
        raise OptionError(
            f"--pareto {folder} looks for new maps at many weights and knows no {' or '.join(given)}; leave one out"
        )


def _check_own_folder(option: str, folder: Path, outputs: dict[str, Path | None]) -> None:
    """Raise now if the folder could not be written later, or if other outputs lie in it or hold it."""
    check_folder(folder)
    for other, path in outputs.items():
        if path is not None and (
            path.resolve().is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(path.resolve())
        ):
            raise OptionError(f"{other} {path} and {option} {folder} overlap; give the maps a folder of their own")
