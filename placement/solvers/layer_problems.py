"""Workload -> one LayerProblem a layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.cluster import Cluster
from placement.cost.sets import distinct_sets, distinct_sets_with_homes
from placement.problem import LayerProblem, Options
from placement.workload import Workload

MOST_BOOTSTRAPS, FEWEST_BOOTSTRAPS = 64, 16
BOOTSTRAP_SHARE = 0.25


def layer_problem(
    workload: Workload,
    cluster: Cluster,
    options: Options,
    layer: int,
    home_S: npt.NDArray[np.int32] | None = None,
) -> LayerProblem:
    """Everything that a solver needs for one layer; deterministic in (workload, options.seed, layer).

    home_S  int32 [S], home node of each sampled token, -1: uniformly random; None: all are
    """
    model = workload.model
    ids_SK, home_U = workload.sample_ids_SLK[:, layer], None
    if home_S is None:
        sets_UK, count_U = distinct_sets(ids_SK, model.num_experts)
    else:
        sets_UK, home_U, count_U = distinct_sets_with_homes(ids_SK, home_S, model.num_experts)
    return LayerProblem(
        index=layer,
        num_experts=model.num_experts,
        top_k=model.top_k,
        num_groups=model.num_groups,
        cluster=cluster,
        options=options,
        sets_UK=sets_UK,
        count_U=count_U,
        load_BE=bootstrap_loads(workload, layer, options.seed) if options.sends_count else exact_load(workload, layer),
        coact_EE=workload.coact_LEE[layer],
        home_U=home_U,
        seed=int(np.random.SeedSequence([options.seed, layer]).generate_state(1, np.uint64)[0]),
    )


def exact_load(workload: Workload, layer: int) -> npt.NDArray[np.float64]:
    """Shares of load, float64 [1, E]: all that balance alone is judged by."""
    load_E = workload.load_LE[layer].astype(np.float64)
    if not load_E.any():  # of counts a few requests may be drawn, which need not visit every layer
        load_E = np.ones(len(load_E))
    return np.asarray(load_E / load_E.sum())[None]


def num_bootstraps(num_experts: int) -> int:
    """Many where layers are small; few where each costs a search more, and loads are sums of more experts anyway."""
    return int(np.clip(6144 // num_experts, FEWEST_BOOTSTRAPS, MOST_BOOTSTRAPS))


def bootstrap_loads(workload: Workload, layer: int, seed: int) -> npt.NDArray[np.float64]:
    """Shares of load, float64 [B, E]: the exact one, then resamples of a quarter of the requests.

    The same requests are drawn for every layer, with replacement. Fewer requests than there are vary more: experts of
    one topic on one rank then cost what they will cost on other requests. Against 16 resamples of all requests, on ten
    splits of a real trace (gpt-oss-20b, none of which chose these numbers): held-out sends of eplb's 0.768 for 0.770
    (difference -0.0023, standard error 0.0006), imbalance -0.008 (0.007, so perhaps no difference).
    """
    exact = workload.load_LE[layer].astype(np.float64)
    num_requests = len(workload.profile_key_Q)
    rows = [exact]
    if num_requests > 1:
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0xB007]))
        drawn = max(int(BOOTSTRAP_SHARE * num_requests), 1)
        each = np.full(num_requests, 1 / num_requests)
        weight_BQ = rng.multinomial(drawn, each, size=num_bootstraps(len(exact)))
        rows += list(weight_BQ.astype(np.float64) @ workload.profile_QLE[:, layer].astype(np.float64))
    loads = np.stack([row if row.sum() > 0 else exact for row in rows])
    return np.asarray(loads / loads.sum(axis=1, keepdims=True))
