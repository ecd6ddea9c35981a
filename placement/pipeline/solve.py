"""The main job: traces in, a measured placement out."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt

from placement.core.choices import HOLDOUT
from placement.core.cluster import Cluster
from placement.core.migration import check_fits
from placement.core.placement import Placement
from placement.cost.evaluation import Evaluation
from placement.errors import OptionError
from placement.pipeline.evaluate_parts import Answers, PartFigures, evaluate_parts
from placement.pipeline.layer_answer import FROM_CURRENT
from placement.pipeline.measure import count_both_sides, measure_named, workload_of
from placement.pipeline.solution import Solution
from placement.pipeline.solve_layers import solve_workload
from placement.solvers import get_solver
from placement.solvers.options import Options
from placement.support.parallel import make_executor
from placement.support.progress import Listener, Progress, ignore
from placement.traces.parts import Parts, parts_of
from placement.traces.split import split_requests
from placement.traces.trace import Trace
from placement.workload.count import count
from placement.workload.counted import Counted
from placement.workload.counts_file import Counts
from placement.workload.workload import SAMPLE_TOKENS, Workload

BASELINES = ("linear", "eplb")
CURRENT = "current"
ROBUST = "robust"
MOST_DOMAINS = 32
MOST_EXACT_TOKENS = 1 << 24  # of a trace on all of whose tokens maps are measured
PARTS_TOKENS, FEWEST_PART_TOKENS = SAMPLE_TOKENS, 1_024  # of the samples of all parts together, and of one


def solve(
    trace: Trace | Counts | Counted,
    cluster: Cluster,
    options: Options | None = None,
    *,
    current: Placement | None = None,
    holdout: float | None = None,
    robust: str | None = None,
    by_domain: bool = False,
    engine: Executor | None = None,
    workers: int | None = None,
    listener: Listener = ignore,
) -> Solution:
    """Hold out a share of the requests, fit on the rest, measure linear, eplb and the result on both.

    With a `current` map the answer is a change of that one: nodes and GPUs that are alike are named so that few slots
    move, `options.max_moves` limits them, and `auto` and `anneal` are never worse than the current map on the training
    objective.
    robust: how the traffic is parted (`placement.traces.parts`); the result, named `robust`, is then the map whose
    worst part costs least, beside the plain one of the solver.
    by_domain: also measure the maps on every domain of the requests, where there are 2 to 32.
    engine: what runs the tasks that only return something, such as a `RayExecutor`: counting
    segments of the trace and solving layers; None: the threads, which also measure.
    Of counts alone only the balance is known: the objective must be balance, sends are NaN, and where the counts are
    not by request none are held out.
    Of a counted trace everything is known, sends by a sample of tokens, with their standard error. A trace of more than
    MOST_EXACT_TOKENS tokens is counted like that first, unless it is for `robust`; its domains are not told apart.
    holdout: HOLDOUT, or of a counted trace what it was counted with, if None; of that it may otherwise be 0 alone.
    The placement returned is the one that was measured. Deterministic in (trace, cluster, options, holdout) unless a
    time limit is set, whatever the engine and the number of workers. Raises TraceError, InfeasibleError, LimitError,
    WorkerError of the engine, and MapError if the current map is for another model or cluster.
    """
    options = options or Options()
    if holdout is None:
        holdout = trace.holdout if isinstance(trace, Counted) else HOLDOUT
    if not 0 <= holdout < 1:
        raise OptionError(f"holdout={holdout} must be at least 0 and less than 1")
    cluster.check_fits(trace.model.num_experts)
    get_solver(options.solver)
    _check_current(current, trace, cluster, options)
    if current is not None and robust is not None:
        raise OptionError("robust looks for a new map and knows no current one; leave --from or --robust out")
    if isinstance(trace, Trace) and trace.num_tokens_stored > MOST_EXACT_TOKENS and robust is None:
        with make_executor(workers) as executor:
            trace = count_both_sides(trace, holdout, options, engine or executor, listener)
    parts = parts_to_measure(trace, robust, by_domain, options)
    train, held_out = _split(trace, holdout, options.seed, parts if robust is not None else None)
    result_name = options.solver
    objective_W: dict[str, npt.NDArray[np.float64]] = {}
    with make_executor(workers) as executor:
        tasks = engine or executor
        workload = workload_of(train, options, tasks, listener)
        maps, layers = solve_workload(
            workload,
            cluster,
            options if robust is None else _half_of_the_time(options),
            baselines=BASELINES,
            current=current,
            executor=tasks,
            listener=listener,
        )
        if current is not None:
            maps = {CURRENT: current} | maps
        if robust is not None and parts is not None and isinstance(train, Trace):
            result_name = ROBUST
            part_tokens = max(PARTS_TOKENS // len(parts.names), FEWEST_PART_TOKENS)
            from placement.pipeline.robust import solve_robust  # scipy's programs are loaded only for it

            answer = solve_robust(
                workload,
                [
                    count(parts.of(train, part), seed=options.seed, sample_tokens=part_tokens, executor=tasks)
                    for part in range(len(parts.names))
                ],
                cluster,
                _half_of_the_time(options),
                plain=maps,
                reports=layers,
                name=result_name,
                executor=executor,
                workers=workers,
                listener=listener,
            )
            maps, layers, objective_W = maps | {result_name: answer.placement}, answer.layers, answer.cost_W

        measure = partial(measure_named, maps=maps, cluster=cluster, options=options, executor=executor)
        sides = [side for side in (train, held_out) if side is not None]
        measured: list[dict[str, Evaluation]] = []
        by_part: list[Answers] = []
        for number, side in enumerate(sides):
            listener(Progress(stage="evaluate", done=number, total=len(sides)))
            measured.append(measure(side))
            by_part.append(evaluate_parts(side, parts, measure) if parts and isinstance(side, Trace) else ())
        listener(Progress(stage="evaluate", done=len(sides), total=len(sides)))
    return Solution(
        placement=maps[result_name],
        cluster=cluster,
        options=options,
        layers=layers,
        result_name=result_name,
        maps=maps,
        train=measured[0],
        held_out=measured[1] if held_out is not None else {},
        holdout=holdout if held_out is not None else 0.0,
        input_hash=workload.digest(),
        current=current,
        parts=None if parts is None else part_figures(parts, by_part, cluster, options, trace.model.top_k, objective_W),
        robust=robust,
    )


def _check_current(
    current: Placement | None, trace: Trace | Counts | Counted, cluster: Cluster, options: Options
) -> None:
    if current is not None:
        check_fits(current, trace.model, cluster)
    check_moves(options, has_current=current is not None)


def check_moves(options: Options, *, has_current: bool) -> None:
    """Raise OptionError for limits of moves that the solve cannot keep."""
    if options.moves_limited and not has_current:
        raise OptionError("max_moves says how far the answer may be from a current map; give one with --from FILE")
    if options.moves_limited and options.solver not in FROM_CURRENT:
        raise OptionError(f"solver={options.solver!r} knows no max_moves; use --solver {' or '.join(FROM_CURRENT)}")


def part_figures(
    parts: Parts,
    by_part: list[Answers],
    cluster: Cluster,
    options: Options,
    top_k: int,
    objective_W: dict[str, npt.NDArray[np.float64]],
) -> PartFigures:
    send_price, balance_price = options.prices(cluster, top_k)
    return PartFigures(
        by=parts.by,
        names=parts.names,
        left_out=parts.left_out,
        train=by_part[0],
        held_out=by_part[1] if len(by_part) > 1 else (),
        send_price=send_price,
        balance_price=balance_price,
        objective_W=objective_W,
    )


def parts_to_measure(
    trace: Trace | Counts | Counted, robust: str | None, by_domain: bool, options: Options
) -> Parts | None:
    """Parts of a robust solve; else the domains, if they are wanted and there are some."""
    if isinstance(trace, Counts):
        if options.sends_count:
            raise OptionError(
                f"objective={options.objective!r} needs the experts that each token visits; counts do not say them and "
                f"sends are unknown; use --objective balance, or record a trace"
            )
        if robust is not None:
            raise OptionError(f"robust={robust!r} needs a trace: counts do not say which requests belong together")
        return None
    if isinstance(trace, Counted):
        if robust is not None:
            raise OptionError(f"robust={robust!r} needs the trace: counts do not say of which part a token is")
        return None
    if robust is not None:
        return parts_of(trace, robust)
    if not by_domain:
        return None
    try:
        parts = parts_of(trace, "domain")
    except OptionError:
        return None
    return parts if len(parts.names) <= MOST_DOMAINS else None


def _split(
    trace: Trace | Counts | Counted, holdout: float, seed: int, parts: Parts | None
) -> tuple[Trace | Counts | Workload, Trace | Counts | Workload | None]:
    if isinstance(trace, Counted):
        return trace.split(holdout)
    if not holdout:
        return trace, None
    if isinstance(trace, Counts):
        return trace.split(holdout, seed)
    return split_requests(trace, holdout, seed, parts)


def _half_of_the_time(options: Options) -> Options:
    return options if options.time_limit_s is None else replace(options, time_limit_s=options.time_limit_s / 2)
