"""`advise`: every answer that a trace, or a file of counts, allows."""

from __future__ import annotations

from dataclasses import replace

from placement.analysis.advise import redundancy as copies
from placement.analysis.advise.advice import Advice, Carried, Worth
from placement.analysis.advise.bench import Bench
from placement.analysis.advise.capacity_factor import capacity
from placement.analysis.advise.decay import DOMAIN, WINDOWS, Shift, drift, shift_of
from placement.analysis.advise.map_cost import Figures
from placement.analysis.advise.phases import phases
from placement.analysis.advise.steps import steps_of
from placement.analysis.advise.worth_grouping import Grouping, grouping, why_not_grouped
from placement.core.choices import ADVICE_WORK_LIMIT, MOST_DROPPED
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.step_time import STEP_TOKENS_PER_GPU
from placement.cost.steps.given import check_step_tokens
from placement.cost.transport import sends_are_fixed
from placement.cost.transports import TRANSPORTS
from placement.errors import OptionError
from placement.pipeline.run import begin
from placement.pipeline.source import Source, source_of
from placement.solvers.options import Options
from placement.support.progress import Listener, ignore
from placement.traces.classes import PHASE, Sides, split_classes
from placement.traces.parts import FEWEST_REQUESTS, FEWEST_TOKENS
from placement.traces.trace import Trace
from placement.workload.counts_file import ExpertCounts


def advice_options(options: Options) -> Options:
    """What is best is the shortest modelled step, by which maps are then judged; no bounds; less work a map."""
    return replace(
        options,
        objective="time",
        bound="none",
        work_limit=ADVICE_WORK_LIMIT if options.work_limit is None else options.work_limit,
    )


def advise(
    trace: Trace | ExpertCounts,
    cluster: Cluster,
    options: Options | None = None,
    *,
    holdout: float | None = None,
    step_tokens: int | None = None,
    most_dropped: float = MOST_DROPPED,
    kv_cache_bytes: float | None = None,
    workers: int | None = None,
    listener: Listener = ignore,
) -> Advice:
    """Answer what users ask before they place experts on this cluster. Maps are fitted on a share of the requests and
    measured on the rest.

    Deterministic in all that is given, whatever the number of workers, unless a time limit is set.

    Args:
        trace: A trace, or counts of experts.
        cluster: Where the experts would go.
        options: Options of the solves, see `advice_options`; those that limit changes of a current map are refused.
        step_tokens: Tokens that each GPU brings to a step, for capacity factors; None: 256, as the modelled step has.
        most_dropped: Share of the assignments that a capacity factor may drop.
        kv_cache_bytes: KV cache of one GPU without redundant experts; None: their share of the cache is not told.

    Raises:
        TraceError: The trace cannot be read, or has no tokens to fit or to hold out.
        InfeasibleError: No placement can satisfy what was asked.
        OptionError: The options do not fit each other or the trace.
    """
    source = source_of(trace)
    options = advice_options(options or Options())
    step_tokens = STEP_TOKENS_PER_GPU if step_tokens is None else step_tokens
    with begin(source, cluster, options, holdout, workers=workers, listener=listener) as run:
        holdout = run.holdout
        _check(options, step_tokens, most_dropped, kv_cache_bytes)
        if not source.has_tokens:
            options = replace(options, objective="balance")
        train, held_out = source.split(holdout, options.seed)
        side = train if held_out is None else held_out
        classes, shifts, absent = _plan(source, cluster, options, holdout)
        usable = tuple(name for name in TRANSPORTS if TRANSPORTS.make(name).fault(cluster) is None)
        carried_by = usable if source.has_tokens else (options.transport,)
        bench = Bench(
            run=run,
            total=len(carried_by)
            + len(copies.clusters(cluster, trace.model.num_experts))
            - 1
            + len(classes)
            + ("grouping" not in absent)
            + sum(1 + len(shift.chosen) for shift in shifts),
        )
        workload = run.count(train, options.seed)
        maps: dict[str, dict[str, Placement]] = {}
        figures: dict[str, dict[str, Figures]] = {}
        for transport in carried_by:
            own = replace(options, transport=transport)
            maps[transport] = bench.fit(workload, cluster, own, baselines=True)
            figures[transport] = bench.measure(side, maps[transport], cluster, own)
        known = figures[options.transport]
        transports = tuple(
            Carried(
                transport=transport,
                fixed=sends_are_fixed(cluster, transport, trace.model.num_experts),
                maps=figures[transport],
            )
            for transport in carried_by
        )
        answered = copies.redundancy(bench, workload, side, cluster, options, known, kv_cache_bytes)
        by_phase = phases(bench, classes, cluster, options, maps[options.transport]) if classes else None
        drifts = tuple(drift(bench, shift, cluster, options) for shift in shifts)
        grouped: Grouping | None = None
        if "grouping" not in absent:
            try:
                grouped = bench.heard(lambda: grouping(source.trace("grouping"), cluster, options, holdout, workers))
            except OptionError as error:
                absent["grouping"] = str(error)
        stepped = steps_of(bench, side, maps[options.transport], cluster, options)
        if isinstance(stepped, str):
            absent["steps"] = stepped
        dropping = capacity(
            trace, step_tokens=step_tokens * cluster.num_ranks, most_dropped=most_dropped, executor=run.threads
        )
    num_tokens, num_requests = source.size()
    return Advice(
        model=trace.model,
        cluster=cluster,
        options=options,
        holdout=holdout if held_out is not None else 0.0,
        num_tokens=num_tokens,
        num_requests=num_requests,
        input_hash=workload.digest(),
        measured_on="training" if held_out is None else "held-out",
        worth=Worth(maps=known),
        redundancy=answered,
        capacity=dropping,
        transports=transports if source.has_tokens else None,
        phases=by_phase,
        grouping=grouped,
        steps=None if isinstance(stepped, str) else stepped,
        drift=drifts,
        absent=absent,
    )


def _check(options: Options, step_tokens: int, most_dropped: float, kv_cache_bytes: float | None) -> None:
    if options.moves_limited:
        raise OptionError("advice is about new maps and knows no current one; leave out max_moves")
    check_step_tokens([step_tokens])
    if not 0 <= most_dropped < 1:
        raise OptionError(f"most_dropped={most_dropped} must be at least 0 and less than 1: a share of the assignments")
    if kv_cache_bytes is not None and not 0 < kv_cache_bytes < 1e18:
        raise OptionError(f"kv_cache={kv_cache_bytes} bytes must be more than 0 and less than 1e18")


def _plan(
    source: Source, cluster: Cluster, options: Options, holdout: float
) -> tuple[list[Sides], list[Shift], dict[str, str]]:
    """Phases and shifts to answer for, and why what is absent is."""
    if not source.has_tokens:
        return (
            [],
            [],
            {
                "transports": "counts do not say which experts a token visits together: sends and bytes are unknown",
                "phases": "counts are of all tokens together: prefill and decode are not told apart",
                "grouping": "counts do not say which experts the tokens of a request visit",
                "drift": "counts do not say which requests are of one domain, nor which came later",
            },
        )
    trace = source.trace("advice")
    absent: dict[str, str] = {}
    classes: list[Sides] = []
    try:
        classes = split_classes(trace, PHASE, holdout, options.seed)[-1]
    except OptionError:
        absent["phases"] = f"the trace lacks prefill or decode: {FEWEST_TOKENS} or more tokens of both are needed"
    if (why := why_not_grouped(trace, cluster, options, holdout)) is not None:
        absent["grouping"] = why
    found = {by: shift_of(trace, by, holdout, options.seed) for by in (DOMAIN, WINDOWS)}
    if found[DOMAIN] is None:
        absent["drift by domain"] = (
            f"fewer than two domains of {FEWEST_TOKENS} or more tokens and {FEWEST_REQUESTS} or more requests are named"
        )
    if found[WINDOWS] is None:
        absent["drift by windows"] = "too few requests or tokens to cut the trace into windows"
    return classes, [shift for shift in found.values() if shift is not None], absent
