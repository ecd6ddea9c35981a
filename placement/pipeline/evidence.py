"""What a map rests on: how many requests, what twice as many would bring, and how far held-out imbalance is chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.evaluation import Evaluation
from placement.pipeline.learning_curve import Doubling, doubling
from placement.pipeline.run import BASELINES, Run
from placement.pipeline.source import Side
from placement.solvers.options import Options
from placement.workload.mixed import MixedWorkload
from placement.workload.workload import Workload

CURVE_SOLVERS = ("auto", "anneal")
LINEAR, EPLB = BASELINES
DRAWS, FEWEST_TO_DRAW = 200, 2

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """How far the figures of a solution can be trusted.

    Attributes:
        requests: Requests that the map was fitted to, or as many of them as are profiled; None: counts name none.
        all_profiled: False where there are more requests than `requests`.
        twice: What twice the requests would bring; None: not measured.
        held_out_requests: Requests that were held out; None: none were, or so many that chance is no matter.
        imbalance_error: Standard error of the result's held-out imbalance, from one set of so many requests to the
            next; None: unknown.
        difference_error: The same of its difference from the reference map.
    """

    requests: int | None
    all_profiled: bool = True
    twice: Doubling | None = None
    held_out_requests: int | None = None
    imbalance_error: float | None = None
    difference_error: float | None = None


def drawn_imbalance(
    profile_QLE: npt.NDArray[np.integer], one: Placement, answer: Evaluation, cluster: Cluster, seed: int
) -> Floats:
    """Rank imbalance of a map, mean over layers, on DRAWS sets of as many requests, drawn with replacement.

    Args:
        profile_QLE: Assignments of each request, [Q, L, E].
        one: The map.
        answer: What the map cost on these requests: an expert's load is shared over its slots as there.
        cluster: Where the slots are.
        seed: Of the draws: the same for two maps, so that they can be compared draw by draw.

    Returns:
        float64 [DRAWS].
    """
    size, num_layers, num_experts = profile_QLE.shape
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xD1CE]))
    weight_BQ = rng.multinomial(size, np.full(size, 1 / size), size=DRAWS).astype(np.float64)
    speed_G = cluster.speed_G()
    total_B = np.zeros(DRAWS)
    for layer in range(num_layers):
        row_P, load_P = one.phy2log_LP[layer], answer.load_LP[layer]
        served_P = np.bincount(row_P, weights=load_P, minlength=num_experts)[row_P]
        even_P = 1.0 / np.bincount(row_P, minlength=num_experts)[row_P]
        share_P = np.divide(load_P, served_P, out=even_P, where=served_P > 0)
        load_QG = (profile_QLE[:, layer, row_P] * share_P).reshape(size, cluster.num_ranks, -1).sum(axis=2)
        load_BG = cluster.served_XG(weight_BQ @ load_QG)
        mean_B, peak_B = load_BG.mean(axis=1), (load_BG / speed_G).max(axis=1)
        total_B += np.divide(peak_B, mean_B, out=np.ones(DRAWS), where=mean_B > 0)
    return np.asarray(total_B / num_layers)


def evidence_of(
    run: Run,
    workload: Workload | MixedWorkload,
    held_out: Side | None,
    maps: Mapping[str, Placement],
    answers: Mapping[str, Evaluation],
    cluster: Cluster,
    options: Options,
    name: str,
) -> Evidence:
    """What the map `name` rests on.

    No curve is drawn of several captures, of a robust map, within a limit of moves, nor within a time limit.

    Args:
        workload: The training requests.
        held_out: The requests that were held out, if any were.
        maps: Maps by name, `linear` and `eplb` among them.
        answers: What they cost on the held-out requests.
    """
    if isinstance(workload, MixedWorkload):
        known = [(part.profile_key_Q.tolist(), part.profile_requests) for part in workload.parts]
        named = len({key for keys, _ in known for key in keys}) if all(keys for keys, _ in known) else None
        return Evidence(requests=named, all_profiled=all(len(keys) < most for keys, most in known))
    requests = len(workload.profile_key_Q)
    curved = name in CURVE_SOLVERS and options.time_limit_s is None and not options.moves_limited
    evidence = Evidence(
        requests=requests or None,
        all_profiled=requests < workload.profile_requests,
        twice=doubling(workload, cluster, options, run.tasks) if curved else None,
    )
    profile_QLE = None if held_out is None else held_out.profile_QLE(run.threads)
    if profile_QLE is None:
        return evidence
    size = len(profile_QLE)
    if size < FEWEST_TO_DRAW:
        return replace(evidence, held_out_requests=size)
    pair = (name, LINEAR if name == EPLB else EPLB)
    mine_B, other_B = (drawn_imbalance(profile_QLE, maps[one], answers[one], cluster, options.seed) for one in pair)
    unbiased = np.sqrt(size / (size - 1))  # sets drawn from so few requests vary too little
    return replace(
        evidence,
        held_out_requests=size,
        imbalance_error=float(mine_B.std(ddof=1) * unbiased),
        difference_error=float((mine_B - other_B).std(ddof=1) * unbiased),
    )
