"""Evaluate maps on what was counted of a trace: loads exactly, sends on a uniform sample of its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from placement.core.choices import REPLICA_CHOICE, TRANSPORT
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.evaluation import Evaluation, evaluation_of
from placement.cost.given import cluster_of
from placement.cost.meter import Meter
from placement.cost.transport import wire_cost
from placement.cost.transports import TRANSPORTS
from placement.workload.workload import Workload

SAMPLE_GROUPS = 64


def evaluate_sample(
    side: Workload,
    placements: Sequence[Placement],
    *,
    cluster: Cluster,
    replica_choice: str = REPLICA_CHOICE,
    transport: str = TRANSPORT,
    executor: Executor | None = None,
) -> list[Evaluation]:
    """Cost of each placement by what was counted: loads exact, sends on the sampled tokens.

    Where an expert has several slots, the sample says how its load is shared among them. The sample is uniform, so the
    standard error of the mean sends is that of the means of SAMPLE_GROUPS random groups of its tokens; it says how far
    the sends of all tokens may be, and is 0 where all were sampled.
    """
    TRANSPORTS.check(transport)
    clusters = [cluster_of(placement, cluster) for placement in placements]
    meter = Meter(side.model, placements, clusters, replica_choice, transport, homes_are_random=True)
    sampled = len(side.sample_ids_SLK)
    sent_MG = np.zeros((len(placements), SAMPLE_GROUPS + 1))
    stops = np.linspace(0, sampled, SAMPLE_GROUPS + 1).astype(np.int64)
    for group, (start, stop) in enumerate(pairwise(stops.tolist()), start=1):
        if start == stop:
            continue
        ids_TLK = side.sample_ids_SLK[start:stop]
        home_T = np.full(stop - start, -1, dtype=np.int32)
        ids_LTK = np.ascontiguousarray(ids_TLK.transpose(1, 0, 2))
        meter.add(home_T, ids_LTK.__getitem__, executor)
        for m, one in enumerate(clusters):
            sends_L = [wire_cost(traffic, one, transport, stop) for traffic in meter.traffic[m]]
            sent_MG[m, group] = np.mean(sends_L) * stop
    answers = []
    for m, (placement, one) in enumerate(zip(placements, clusters, strict=True)):
        load_LP = np.stack([
            _shared_load(load_E, load_P, row)
            for load_E, load_P, row in zip(side.load_LE, meter.loads[m], placement.phy2log_LP, strict=True)
        ])  # fmt: skip
        exact = evaluation_of(sampled, meter.served_L, one, transport, meter.traffic[m], load_LP)
        known = {"num_tokens": side.num_tokens, "assignments_L": side.load_LE.sum(axis=1) / max(side.num_tokens, 1)}
        error = _sampling_error(sent_MG[m], stops, side.num_tokens)
        answers.append(replace(exact, sampled_tokens=sampled, sends_error=error, **known))
    return answers


def _sampling_error(sent_G: npt.NDArray[np.float64], stops: npt.NDArray[np.int64], num_tokens: int) -> float | None:
    """Standard error of the mean by what groups of tokens sent, drawn without replacement; None of too few tokens."""
    if stops[-1] == num_tokens:
        return 0.0
    if stops[-1] < 2 * SAMPLE_GROUPS:
        return None
    mean_G = np.diff(sent_G) / np.diff(stops)
    return float(mean_G.std(ddof=1) / np.sqrt(SAMPLE_GROUPS) * np.sqrt(1 - stops[-1] / num_tokens))


def _shared_load(
    load_E: npt.NDArray[np.int64], sampled_P: npt.NDArray[np.float64], phy2log_P: npt.NDArray[np.integer]
) -> npt.NDArray[np.float64]:
    """The load of each slot where experts share theirs as on the sampled tokens; evenly where none visits them."""
    sampled_E = np.bincount(phy2log_P, weights=sampled_P, minlength=len(load_E))[phy2log_P]
    even_P = 1.0 / np.bincount(phy2log_P, minlength=len(load_E))[phy2log_P]
    return np.asarray(load_E[phy2log_P] * np.divide(sampled_P, sampled_E, out=even_P, where=sampled_E > 0))
