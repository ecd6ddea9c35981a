"""Trace -> Workload in one pass, segment by segment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor
from functools import partial
from operator import add

from placement.errors import TraceError
from placement.support.memory import check_fits_memory
from placement.support.parallel import run_in_order, shares_memory, width
from placement.traces.trace import Trace
from placement.workload.count_segment import SegmentCounts, count_segment
from placement.workload.segment import Plan, Segment, segments_of, spans_of
from placement.workload.workload import PROFILE_REQUESTS, SAMPLE_TOKENS, Workload

MEMORY_BYTES = 1 << 30  # of the segments that are counted side by side; one alone may need more


def count(
    trace: Trace,
    *,
    seed: int = 0,
    sample_tokens: int = SAMPLE_TOKENS,
    profile_requests: int = PROFILE_REQUESTS,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Workload:
    """Count the kept tokens of `trace`; the answer does not depend on the executor.

    Args:
        trace: The trace whose kept tokens are counted.
        seed: Seed of the pseudo-random keys by which tokens and requests are sampled.
        sample_tokens: Most tokens of the sample.
        profile_requests: Most requests whose loads are kept.
        executor: Counts segments side by side; None: one after another.
        progress: Called with the number of tokens of each segment that was counted.

    Raises:
        TraceError: Expert ids are out of range or repeated in a top-k set, or the trace has no tokens.
    """
    plan = Plan.of(trace, seed=seed, sample_tokens=sample_tokens, profile_requests=profile_requests)
    (whole,) = count_trace(plan, trace, executor, progress)
    if not whole.num_tokens:
        raise TraceError("the trace has no tokens of the selected requests; select other requests or record more")
    return whole


def count_trace(
    plan: Plan, trace: Trace, executor: Executor | None, progress: Callable[[int], None] | None
) -> tuple[Workload, ...]:
    """The workload of every side; as `count` otherwise."""
    sides: tuple[Workload, ...] = ()
    for counts in count_segments(plan, segments_of(spans_of(trace)), executor):
        sides = tuple(map(add, sides, counts.sides)) if sides else counts.sides
        if progress is not None:
            progress(sum(side.num_tokens for side in counts.sides))
    return sides


def count_segments(plan: Plan, segments: Iterable[Segment], executor: Executor | None) -> Iterator[SegmentCounts]:
    """Count segments side by side, as many as MEMORY_BYTES allow; the answers come in order.

    Other machines have memory of their own: there as many are begun as keep every worker busy. Raises InputError where
    not even one fits in memory.
    """
    check_fits_memory(plan.model, plan.segment_bytes())
    most = max(MEMORY_BYTES // plan.segment_bytes(), 1)
    if executor is not None and not shares_memory(executor):
        most = 2 * width(executor)
    return run_in_order(partial(count_segment, plan), segments, executor, most)
