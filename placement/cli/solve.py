"""`placement solve`."""

from __future__ import annotations

from concurrent.futures import Executor
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypedDict

import typer

from placement.cli.by_class import By, MapsOut
from placement.cli.executor import THREADS, Address, Engine, open_engine
from placement.cli.group import HomeFrom, TokenTolerance
from placement.cli.outputs import output_file, output_folder
from placement.cli.shared import (
    ClusterFile,
    GpusPerNode,
    Json,
    Nodes,
    RedundantExperts,
    ReplicaChoice,
    Seed,
    SlotsPerGpu,
    TopK,
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
from placement.cli.solve_checks import Outputs, check_alone, check_needed
from placement.core.choices import BALANCE_WEIGHT, BOUNDS, HOLDOUT, OBJECTIVES, PARTINGS, TOKEN_TOLERANCE
from placement.errors import OptionError
from placement.solvers import SOLVERS
from placement.support.progress import Listener

if TYPE_CHECKING:
    from placement.traces.trace import Trace
    from placement.workload.counted import Counted
    from placement.workload.counts_file import Counts


def solve_command(
    traces: Traces,
    output: Annotated[Path, output_file("-o", "--output", help="Placement file to write.")] = Path("placement.json"),
    nodes: Nodes = None,
    gpus_per_node: GpusPerNode = None,
    slots_per_gpu: SlotsPerGpu = None,
    redundant_experts: RedundantExperts = None,
    cluster: ClusterFile = None,
    solver: Annotated[str, typer.Option(help=f"One of {', '.join(SOLVERS)}.")] = "auto",
    balance_weight: Annotated[
        float, typer.Option(help="Sends per token that one unit of rank imbalance (max/mean) is worth.")
    ] = BALANCE_WEIGHT,
    max_imbalance: Annotated[
        float | None, typer.Option(help="Hard cap on every layer's rank imbalance on the training requests.")
    ] = None,
    max_node_imbalance: Annotated[float | None, typer.Option(help="The same for nodes.")] = None,
    objective: Annotated[str, typer.Option(help=f"What is best: {', '.join(OBJECTIVES)}.")] = "locality",
    top_k: TopK = None,
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
    seed: Seed = 0,
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
        Path | None, output_file(help="File for the copies to make: slot, expert, from and to rank; needs --from.")
    ] = None,
    pareto: Annotated[
        Path | None,
        output_folder(help="Folder for the whole front of sends against imbalance: maps, front.json and a plot."),
    ] = None,
    group: Annotated[
        bool, typer.Option("--group", help="Group requests by home node together with placing the experts.")
    ] = False,
    grouping_out: Annotated[
        Path | None, output_file(help="File for homes of requests and the router; needs --group.")
    ] = None,
    home_from: HomeFrom = None,
    token_tolerance: TokenTolerance = TOKEN_TOLERANCE,
    by: By = None,
    maps_out: MapsOut = None,
    workers: Workers = None,
    engine: Engine = THREADS,
    address: Address = None,
    server: Annotated[
        str | None, typer.Option(help="Address of a service (`placement serve`) that solves instead of this machine.")
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="PLACEMENT_TOKEN", show_envvar=False, help="Token for --server, if it needs one."),
    ] = None,
    report: Annotated[Path | None, output_file(help="HTML report to write.")] = None,
    json_output: Json = False,
) -> None:
    """Find a placement for the experts in TRACES (or in counts) and measure it beside linear and eplb."""
    from placement.cli.remote import check_remote, solve_remotely
    from placement.cli.solve_output import Answer
    from placement.documents.placement_json import load_placement
    from placement.pipeline.by_class import solve_by
    from placement.pipeline.front import solve_front
    from placement.pipeline.solve import solve
    from placement.pipeline.with_homes import solve_grouped
    from placement.solvers.options import Options
    from placement.workload.counted import Counted
    from placement.workload.counts_folder import is_counts_folder

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
    outputs = Outputs(
        placement=output,
        report=report,
        migration=migration_out,
        grouping=grouping_out,
        maps=maps_out,
        pareto=pareto,
    )
    far = None if engine == THREADS else engine
    if group:
        check_alone("--group", {"--robust": robust, "--from": current, "--pareto": pareto, f"--engine {far}": far})
    else:
        check_needed("--group", "about homes of requests", {"--grouping-out": grouping_out, "--home-from": home_from})
    if by is not None:
        check_alone("--by", {"--robust": robust, "--from": current, "--pareto": pareto, "--group": group})
    else:
        check_needed("--by", "for the maps of classes of traffic", {"--maps-out": maps_out})
    if pareto is not None:
        check_alone("--pareto", {"--robust": robust, "--from": current})
    if migration_out is not None and current is None:
        raise OptionError("--migration-out says how to get from a map to the answer; give that map with --from FILE")
    in_use = None if current is None else load_placement(current)[0]
    trace = open_counted(traces) if any(map(is_counts_folder, traces)) else open_input(traces, top_k)
    if isinstance(trace, Counted):
        of_tokens = {"--group": group, "--by": by, "--pareto": pareto, "--robust": robust}
        check_alone("a folder of counts", {**of_tokens, "--server": server, "--top-k": top_k})
    holdout = HOLDOUT if given_holdout is None else given_holdout
    shape = cluster_from_options(
        trace.model.num_experts,
        file=cluster,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        slots_per_gpu=slots_per_gpu,
        redundant_experts=redundant_experts,
    )
    if server is not None:
        not_there = {"--from": current, "--by": by, "--pareto": pareto, "--migration-out": migration_out}
        check_remote({**not_there, "--group": group, "--workers": workers, "--engine": far})
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
    far_executor = open_engine(engine, address, workers)
    with far_executor or nullcontext() as executor, progress_listener(quiet=json_output) as listener:
        common: Common = {
            "engine": executor,
            "workers": workers if executor is None else None,
            "listener": listener,
        }
        if group:
            of_requests = tokens_of(trace, "--group needs a trace: counts do not say which tokens are of one request")
            grouped = solve_grouped(
                of_requests,
                shape,
                options,
                home_from=home_from,
                tolerance=token_tolerance,
                holdout=holdout,
                workers=workers,
                listener=listener,
            )
            answer = Answer(solution=grouped.solution, grouped=grouped)
        elif by is not None:
            of_classes = tokens_of(trace, "--by needs a trace: counts do not say of which class a token is")
            classes = solve_by(of_classes, shape, options, by=by, holdout=holdout, **common)
            answer = Answer(solution=classes.solution, classes=classes)
        elif pareto is not None and not isinstance(trace, Counted):
            by_domain = report is not None
            front = solve_front(trace, shape, options, by_domain=by_domain, holdout=holdout, **common)
            answer = Answer(solution=front.solution, front=front)
        else:
            solution = solve(
                trace,
                shape,
                options,
                current=in_use,
                holdout=given_holdout,
                robust=robust,
                by_domain=report is not None,
                **common,
            )
            answer = Answer(solution=solution)
    answer.write(outputs)
    if json_output:
        print_json(answer.document())
        return
    answer.show()
    stdout_console().print(f"wrote {outputs.named()}", highlight=False, markup=False, soft_wrap=True)


class Common(TypedDict):
    """What solves on any engine take."""

    engine: Executor | None
    workers: int | None
    listener: Listener


def tokens_of(trace: Trace | Counts | Counted, why: str) -> Trace:
    """The trace; raises OptionError, which says why it is needed, for counts."""
    from placement.traces.trace import Trace

    if isinstance(trace, Trace):
        return trace
    raise OptionError(why)
