"""One side of the requests, fitted or held out: counted for the solvers, and maps measured on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.evaluate_sample import evaluate_sample
from placement.cost.evaluation import Evaluation, evaluate, evaluate_counts
from placement.solvers.options import Options
from placement.support.progress import Listener, Progress
from placement.traces.split import held_out
from placement.traces.trace import Trace
from placement.workload.count import count
from placement.workload.counted import Counted, count_sides
from placement.workload.counts_file import Counts
from placement.workload.workload import SAMPLE_TOKENS, Workload


def measure(
    side: Trace | Counts | Workload,
    placements: Sequence[Placement],
    *,
    cluster: Cluster,
    options: Options,
    executor: Executor,
    home_Q: npt.NDArray[np.int32] | None = None,
) -> list[Evaluation]:
    """The maps under the replica choice and transport of the options: exactly on a trace, sends on the sample of a
    workload, and of counts the loads alone.

    home_Q: home node of each entry of the trace's requests, int32 [Q]; None: homes are random.
    """
    if isinstance(side, Counts):
        return evaluate_counts(side, placements, cluster=cluster, transport=options.transport)
    how: dict[str, Any] = {
        "cluster": cluster,
        "replica_choice": options.replica_choice,
        "transport": options.transport,
        "executor": executor,
    }
    if isinstance(side, Workload):
        return evaluate_sample(side, placements, **how)
    return evaluate(side, placements, home_Q=home_Q, **how)


def measure_named(
    side: Trace | Counts | Workload,
    maps: Mapping[str, Placement],
    *,
    cluster: Cluster,
    options: Options,
    executor: Executor,
) -> dict[str, Evaluation]:
    """As `measure`, by the names of the maps."""
    answers = measure(side, list(maps.values()), cluster=cluster, options=options, executor=executor)
    return dict(zip(maps, answers, strict=True))


def workload_of(side: Trace | Counts | Workload, options: Options, executor: Executor, listener: Listener) -> Workload:
    """What solvers are given of the requests to fit."""
    if isinstance(side, Counts):
        return side.workload(options.seed)
    if isinstance(side, Workload):
        return side.thinned(SAMPLE_TOKENS)
    return count_training(side, options, executor, listener)


def count_training(trace: Trace, options: Options, executor: Executor, listener: Listener) -> Workload:
    with counting_progress(trace, listener) as progress:
        return count(trace, seed=options.seed, executor=executor, progress=progress)


def count_both_sides(trace: Trace, holdout: float, options: Options, executor: Executor, listener: Listener) -> Counted:
    """As `placement traces count`, with the requests held out that a solve of the tokens holds out."""
    with counting_progress(trace, listener) as progress:
        return count_sides(
            trace,
            holdout=holdout,
            seed=options.seed,
            held_out_Q=held_out(trace, holdout, options.seed) if holdout else None,
            executor=executor,
            progress=progress,
        )


@contextmanager
def counting_progress(trace: Trace, listener: Listener) -> Iterator[Callable[[int], None]]:
    """To be told how many tokens were counted; tells the listener of how many all are."""
    total = trace.num_tokens_stored
    done = 0

    def counted(tokens: int) -> None:
        nonlocal done
        done += tokens
        listener(Progress(stage="count", done=done, total=total))

    yield counted
    listener(Progress(stage="count", done=total, total=total))
