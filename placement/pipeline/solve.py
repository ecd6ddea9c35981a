"""The main job: traces in, a measured placement out.

`solve` holds out a share of the requests, fits a map on the rest, and measures `linear`, `eplb` and the result on both
sides. The placement that is returned is the one that was measured. The answer is deterministic in (trace, cluster,
options, holdout) unless a time limit is set, whatever runs the tasks.

- Of a counted trace, sends are measured on a sample of the tokens, with their standard error; a trace above
  `source.MOST_EXACT_TOKENS` is counted first, unless for a robust map. Of counts alone only the balance is known: the
  objective must be balance, and sends are NaN.
- With a map in use the answer is a change of that map: nodes and GPUs that are alike are named so that few slots move,
  `options.max_moves` limits the moves, and `auto` and `anneal` are never worse than the map in use on the training
  objective. Where that map was for a cluster of another size, the map of the new cluster with the fewest copies takes
  its place.
- A robust result is the map whose worst part of the traffic costs least, beside the plain map of the solver.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace

import numpy as np

from placement.core.choices import CAPTURES
from placement.core.cluster import Cluster
from placement.core.migration import check_change
from placement.core.placement import Placement
from placement.core.resize import Resize
from placement.errors import InfeasibleError, OptionError
from placement.pipeline.captures import Captures
from placement.pipeline.captures_source import CapturesSource, any_source
from placement.pipeline.evidence import evidence_of
from placement.pipeline.layer_answer import FROM_CURRENT
from placement.pipeline.run import BASELINES, begin, figures_by_part
from placement.pipeline.solution import Solution
from placement.pipeline.source import Source
from placement.solvers.options import Options
from placement.support.progress import Listener, ignore
from placement.traces.parts import Parts
from placement.traces.trace import Trace
from placement.workload.counted import CountedTrace
from placement.workload.counts_file import ExpertCounts
from placement.workload.workload import Workload

CURRENT, FEWEST_COPIES = "current", "fewest-copies"
ROBUST = "robust"
MOST_DOMAINS = 32


def solve(
    trace: Trace | ExpertCounts | CountedTrace | Captures,
    cluster: Cluster,
    options: Options | None = None,
    *,
    current: Placement | None = None,
    lost_ranks: Sequence[int] = (),
    holdout: float | None = None,
    robust: str | None = None,
    by_domain: bool = False,
    engine: Executor | None = None,
    workers: int | None = None,
    listener: Listener = ignore,
) -> Solution:
    """Find a placement and measure it beside `linear` and `eplb`, see the module.

    Args:
        trace: A trace, a counted trace, counts of experts, or several of these as captures.
        cluster: Where the experts go.
        options: What is best, and how long to look; None: the defaults.
        current: A map in use, which the answer changes; its cluster may have another size.
        lost_ranks: Ranks of that map whose weights are gone, see `placement.core.resize.old_ranks_G`.
        holdout: Share of the requests; None: `choices.HOLDOUT`, or the share that a trace was counted with.
        robust: How the traffic is parted (`placement.traces.parts`), for a robust map.
        by_domain: Also measure the maps on every domain of the requests, where there are 2 to 32.
        engine: Runs tasks that only return something (a `RayExecutor`); None: the threads, which also measure.
        workers: Number of threads; None: as many as cores.

    Raises:
        TraceError: The trace cannot be read, or has no tokens to fit or to hold out.
        OptionError: The options do not fit each other, the trace or the current map.
        MapError: `current` is for another model.
        ClusterError: `lost_ranks` are none of the current map's, or too few for the cluster.
        InfeasibleError: No placement can satisfy what was asked.
        LimitError: No placement within the caps was found within the limit.
        WorkerError: A task of `engine` died again and again.
    """
    options = options or Options()
    source = any_source(trace)
    with begin(source, cluster, options, holdout, engine=engine, workers=workers, listener=listener) as run:
        change = _change(source, cluster, options, current, lost_ranks)
        _check(source, options, current, robust)
        source = source if robust is not None else source.ready(run.holdout, options.seed, run.tasks, listener)
        domains = domains_of(source) if robust is None and (by_domain or not options.sends_count) else None
        weight_W = source.weight_W if isinstance(source, CapturesSource) else ()
        parts = source.parts(robust or CAPTURES) if robust or weight_W else domains if by_domain else None
        train, held_out = source.split(run.holdout, options.seed, parts if robust is not None else None)
        workload = run.count_all(train, options.seed)
        first = options if robust is None else half_of_the_time(options)
        start, held_LGE = current, None
        if change is not None and change.resized:
            start, held_LGE = change.start(workload.load_LE), change.held_LGE()
        domain_QD = None
        if domains is not None and isinstance(workload, Workload):
            domain_QD = source.parts_of_profiles(domains, workload)
        known = {"current": start, "held_LGE": held_LGE, "domain_QD": domain_QD, "shows_parts": parts is not None}
        maps, layers = run.fit(workload, cluster, first, baselines=BASELINES, **known)
        maps = maps if start is None else {CURRENT if held_LGE is None else FEWEST_COPIES: start} | maps
        name, objective_W, worst_bound = options.solver if robust is None else ROBUST, {}, None
        if robust is not None and parts is not None:
            from placement.pipeline.robust import solve_robust  # scipy's programs are loaded only for robust maps

            answer = solve_robust(run, train, parts, workload, cluster, first, plain=maps, reports=layers, name=name)
            maps, layers, objective_W = maps | {name: answer.placement}, answer.layers, answer.cost_W
            worst_bound = answer.bound
        measured = run.measure_sides((train, held_out), maps, cluster, options, parts)
        evidence = evidence_of(run, workload, held_out, maps, measured.held_out, cluster, options, name)
    return Solution(
        cluster=cluster,
        options=options,
        layers=layers,
        result_name=name,
        maps=maps,
        train=measured.train,
        held_out=measured.held_out,
        holdout=run.holdout if held_out is not None else 0.0,
        input_hash=workload.digest(),
        current=current,
        lost_ranks=tuple(lost_ranks),
        parts=figures_by_part(parts, measured, cluster, options, objective_W, weight_W, worst_bound),
        robust=robust,
        evidence=evidence,
    )


def _check(source: Source, options: Options, current: Placement | None, robust: str | None) -> None:
    check_moves(options, has_current=current is not None)
    if current is not None and robust is not None:
        raise OptionError("robust looks for a new map and knows no current one; leave --from or --robust out")
    source.check(options)


def _change(
    source: Source, cluster: Cluster, options: Options, current: Placement | None, lost_ranks: Sequence[int]
) -> Resize | None:
    """What the cluster makes of the map in use. Raises MapError, ClusterError, OptionError, and InfeasibleError where
    limits are below the copies that it needs at least."""
    if current is None:
        if lost_ranks:
            raise OptionError("lost_ranks names ranks of a map in use; give that map with --from FILE")
        return None
    check_change(current, source.model, cluster)
    change = Resize.of(current, cluster, lost_ranks)
    limited = options.moves_limited and change.resized
    least_L = change.fewest_copies_L() if limited else np.zeros(1, dtype=np.int64)
    limits = (
        ("max_moves", options.max_moves, int(least_L.sum()), "in all layers together", ""),
        ("max_moves_per_layer", options.max_moves_per_layer, int(least_L.max()), "in one layer", "/layer"),
    )
    for name, most, least, where, unit in limits:
        if most is not None and most < least:
            raise InfeasibleError(
                f"{name}={most} is too few: empty slots, wasted slots and lost experts need {least} copies at least "
                f"{where}; give --max-moves {least}{unit} or more"
            )
    return change


def check_moves(options: Options, *, has_current: bool) -> None:
    """Raise OptionError for limits of moves that the solve cannot keep."""
    if options.moves_limited and not has_current:
        raise OptionError("max_moves says how far the answer may be from a current map; give one with --from FILE")
    if options.moves_limited and options.solver not in FROM_CURRENT:
        raise OptionError(f"solver={options.solver!r} knows no max_moves; use --solver {' or '.join(FROM_CURRENT)}")


def domains_of(source: Source) -> Parts | None:
    """The domains of the requests, if there are 2 to 32 and they are known."""
    if not source.has_tokens:
        return None
    try:
        parts = source.parts("domain")
    except OptionError:
        return None
    return parts if len(parts.names) <= MOST_DOMAINS else None


def half_of_the_time(options: Options) -> Options:
    return options if options.time_limit_s is None else replace(options, time_limit_s=options.time_limit_s / 2)
