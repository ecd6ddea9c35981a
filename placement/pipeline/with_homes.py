"""The main job with homes: traces in; a placement, homes for its requests and a router for new ones out."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.choices import TOKEN_TOLERANCE
from placement.core.cluster import Cluster
from placement.core.migration import check_fits
from placement.core.placement import Placement
from placement.cost.evaluation import Evaluation
from placement.errors import OptionError
from placement.grouping.assign import assign_homes, check_tolerance
from placement.grouping.fit_router import fit_router
from placement.grouping.held_out import extra_of_requests, foretold_of, observed_of, route_requests
from placement.grouping.home_costs import HomeCosts, home_costs
from placement.grouping.requests import Requests, requests_of
from placement.grouping.token_savings import TokenSavings, token_savings
from placement.pipeline.grouped_solution import GROUPED, JOINT, PLACED, WITH_HOMES, Gain, GroupedSolution, Homes
from placement.pipeline.joint import ROUNDS, solve_joint
from placement.pipeline.layer_answer import LayerReport
from placement.pipeline.run import BASELINES, Run, begin
from placement.pipeline.solution import Solution
from placement.pipeline.source import TraceSource, source_of
from placement.pipeline.source_gains import SourceGain, learn, measure_sources, session_tokens
from placement.solvers.options import Options
from placement.support.progress import Listener, Progress, ignore
from placement.traces.cut import FIRST_QUARTER, PREFILL, check_cut, cut_requests
from placement.traces.prompts import TokenLists, prompts_of
from placement.traces.split import split_requests
from placement.traces.trace import Trace
from placement.workload.counted import CountedTrace
from placement.workload.counts_file import ExpertCounts
from placement.workload.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Sides:
    """The training requests and their workload; the held-out requests, if any, cut into what their homes are decided
    from (`first`) and the rest."""

    train: Trace
    held_out: Trace | None
    first: Trace | None
    rest: Trace | None
    requests: Requests
    workload: Workload
    prompts: TokenLists


def solve_grouped(
    trace: Trace | ExpertCounts | CountedTrace,
    cluster: Cluster,
    options: Options | None = None,
    *,
    placement: Placement | None = None,
    holdout: float | None = None,
    home_from: str | None = None,
    tolerance: float = TOKEN_TOLERANCE,
    rounds: int = ROUNDS,
    workers: int | None = None,
    listener: Listener = ignore,
) -> GroupedSolution:
    """Place experts and group requests together; or, for a given `placement`, group requests for it.

    Homes of training requests are chosen from all their tokens. Those of held-out requests are decided from the part
    that `home_from` names (default: the prefill where the trace has prefill and decode, else the first quarter), once
    all together and once by the router as they come, and are measured on the rest. Raises OptionError, TraceError.
    """
    options = options or Options()
    source = source_of(trace)
    with begin(source, cluster, options, holdout, workers=workers, listener=listener) as run:
        holdout = run.holdout
        check_grouping(cluster, options, home_from=home_from, tolerance=tolerance)
        trace = source.trace("grouping")
        if placement is not None:
            check_fits(placement, trace.model, cluster)
        home_from = home_from or _default_cut(trace)
        sides = _split(run, trace, holdout, home_from, options.seed)
        placed, _ = run.fit(
            sides.workload,
            cluster,
            options if placement is None else replace(options, solver="linear", bound="none"),
            baselines=BASELINES,
        )
        group = partial(_homes, sides, cluster=cluster, options=options, tolerance=tolerance, executor=run.threads)
        linear = placed["linear"]
        ways: list[tuple[str, Placement, Homes | None]] = [(name, placed[name], None) for name in BASELINES]
        ways.append((f"linear{WITH_HOMES}", linear, group(linear)))
        layers: tuple[LayerReport, ...] = ()
        if placement is not None:
            result, grouped = placement, group(placement, sources=True)
            ways += [(PLACED, placement, None), (f"{PLACED}{WITH_HOMES}", placement, grouped)]
        else:
            joint = solve_joint(
                run,
                sides.train,
                sides.requests,
                sides.workload,
                cluster,
                options,
                placed[options.solver],
                tolerance=tolerance,
                rounds=rounds,
            )
            result, grouped, layers = joint.placement, group(joint.placement, sources=True), joint.layers
            ways += [
                (options.solver, joint.start, None),
                (f"{options.solver}{WITH_HOMES}", joint.start, group(joint.start)),
                (JOINT, result, None),
                (f"{JOINT}{WITH_HOMES}", result, grouped),
            ]
        gains = _measure(ways, sides, cluster, options, run)
    shown = {one.name: one for one in gains if one.homes is None and one.name != JOINT} | {GROUPED: gains[-1]}
    solution = Solution(
        cluster=cluster,
        options=options,
        layers=layers,
        result_name=GROUPED,
        maps={name: one.placement for name, one in shown.items()},
        train={name: one.train for name, one in shown.items()},
        held_out={name: one.held_out for name, one in shown.items() if one.held_out is not None},
        holdout=holdout,
        input_hash=sides.workload.digest(),
    )
    return GroupedSolution(
        solution=solution,
        requests=sides.requests,
        homes=grouped,
        gains=gains,
        home_from=home_from,
        tolerance=tolerance,
        tokens_Q=_tokens(sides, trace),
        held_out_Q=_tokens(sides, sides.held_out) > 0,
        rest_tokens_Q=_tokens(sides, sides.rest),
    )


def check_grouping(cluster: Cluster, options: Options, *, home_from: str | None, tolerance: float) -> None:
    """Raise OptionError for what cannot be grouped, whatever the trace."""
    if cluster.num_nodes < 2:
        raise OptionError("grouping shares requests among nodes; one node is all there is: use --nodes 2 or more")
    if not options.sends_count:
        raise OptionError("grouping saves sends, and these do not count here; use --objective locality or time")
    if options.moves_limited:
        raise OptionError("grouping looks for a new map and knows no current one; leave out max_moves")
    if home_from is not None:
        check_cut(home_from)
    check_tolerance(tolerance)


def _split(run: Run, trace: Trace, holdout: float, home_from: str, seed: int) -> Sides:
    train, held_out = (trace, None) if not holdout else split_requests(trace, holdout, seed)
    first, rest = (None, None) if held_out is None else cut_requests(held_out, home_from)
    for part, what in ((first, "decide from"), (rest, "measure on")):
        if part is not None and not part.tokens_Q().any():
            raise OptionError(
                f"home_from={home_from!r} leaves no tokens of the held-out requests to {what}; use a share, such as "
                f"{FIRST_QUARTER}"
            )
    workload = run.count(TraceSource(train), seed)
    requests = requests_of(trace)
    return Sides(
        train=train,
        held_out=held_out,
        first=first,
        rest=rest,
        requests=requests,
        workload=workload,
        prompts=requests.lists(prompts_of(trace)),
    )


def _tokens(sides: Sides, part: Trace | None) -> npt.NDArray[np.int64]:
    """Tokens of every request in a part of the trace, int64 [Q]; 0 where there is no such part."""
    if part is None:
        return np.zeros(len(sides.requests.ids), dtype=np.int64)
    return sides.requests.sum(part.tokens_Q())


def _default_cut(trace: Trace) -> str:
    """The prefill if it is recorded and what follows it too, else the first quarter."""
    later = [block.column_T("phase") > 0 for block in trace.blocks()]
    both = any(one.any() for one in later) and not all(one.all() for one in later)
    return PREFILL if both else FIRST_QUARTER


def _homes(
    sides: Sides,
    placement: Placement,
    *,
    cluster: Cluster,
    options: Options,
    tolerance: float,
    executor: Executor,
    sources: bool = False,
) -> Homes:
    """Homes of the training requests at the least cost, and those that the router gives to the others.

    sources  measure as well what each thing that the router may know is worth
    """
    choices: dict[str, Any] = {"replica_choice": options.replica_choice, "transport": options.transport}

    def cost(part: Trace) -> HomeCosts:
        return home_costs(part, sides.requests, placement, cluster, executor=executor, **choices)

    def savings(part: Trace) -> TokenSavings:
        return token_savings(part, sides.requests, placement, cluster, **choices)

    costs = cost(sides.train)
    learned = learn(sides.requests, sides.prompts, sides.train, costs, cost, savings, options.seed)
    router, kept = fit_router(costs, sides.workload, cluster, learned, tolerance=tolerance)
    held_out_Q = routed_Q = None
    measured: tuple[SourceGain, ...] = ()
    stays: float | None = None
    if sides.held_out is not None and sides.first is not None and sides.rest is not None:
        seen = cost(sides.first)
        tokens_Q = sides.requests.sum(sides.rest.tokens_Q())
        held_out_Q = assign_homes(seen.cost_QN, seen.tokens_Q, tolerance=tolerance).home_Q
        held_out_Q = np.where(tokens_Q + seen.tokens_Q > 0, held_out_Q, -1).astype(np.int32)
        foretold = foretold_of(router, sides.requests, tokens_Q > 0, sides.prompts)
        extra_QN = extra_of_requests(foretold, observed_of(router, sides.requests, sides.first))
        routed_Q = route_requests(router, extra_QN, tokens_Q, options.seed)
        stays = session_tokens(router, extra_QN, tokens_Q)
        if sources and learned is not None:
            measured = measure_sources(
                router,
                sides.requests,
                sides.prompts,
                sides.held_out,
                sides.first,
                cost(sides.rest),
                tolerance=tolerance,
                seed=options.seed,
            )
    return Homes(
        assignment=assign_homes(costs.cost_QN, costs.tokens_Q, tolerance=tolerance),
        router=router,
        router_keeps=kept,
        costs=costs,
        held_out_Q=held_out_Q,
        routed_Q=routed_Q,
        sources=measured,
        session_tokens=stays,
    )


def _measure(
    ways: list[tuple[str, Placement, Homes | None]],
    sides: Sides,
    cluster: Cluster,
    options: Options,
    run: Run,
) -> tuple[Gain, ...]:
    """Every way on both sides: those with random homes in one pass, the others with their homes in one each."""

    def on(side: Trace, maps: dict[str, Placement], home_Q: npt.NDArray[np.int32] | None) -> dict[str, Evaluation]:
        homes_Q = None if home_Q is None else home_Q[sides.requests.request_E]
        return run.measure(TraceSource(side), maps, cluster, options, homes_Q)

    def measure_all(side: Trace, homes_of: Callable[[Homes], npt.NDArray[np.int32] | None]) -> dict[str, Evaluation]:
        known = on(side, {name: placement for name, placement, homes in ways if homes is None}, None)
        for name, placement, homes in ways:
            if homes is not None:
                known |= on(side, {name: placement}, homes_of(homes))
        return known

    run.listener(Progress(stage="evaluate", done=0, total=2))
    train = measure_all(sides.train, lambda homes: homes.assignment.home_Q)
    run.listener(Progress(stage="evaluate", done=1, total=2))
    held_out: dict[str, Evaluation] = {}
    routed: dict[str, Evaluation] = {}
    if sides.rest is not None:
        held_out = measure_all(sides.rest, lambda homes: homes.held_out_Q)
        for name, placement, homes in ways:
            if homes is not None:
                routed |= on(sides.rest, {name: placement}, homes.routed_Q)
    run.listener(Progress(stage="evaluate", done=2, total=2))
    return tuple(
        Gain(
            name=name,
            placement=placement,
            homes=homes,
            train=train[name],
            held_out=held_out.get(name),
            routed=routed.get(name),
        )
        for name, placement, homes in ways
    )
