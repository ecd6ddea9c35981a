"""Workload -> one LayerProblem a layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.cluster import Cluster
from placement.cost.sets import distinct_sets
from placement.problem import LayerProblem, Options
from placement.workload import Workload

BOOTSTRAPS = 16


def layer_problem(workload: Workload, cluster: Cluster, options: Options, layer: int) -> LayerProblem:
    """Everything that a solver needs for one layer; deterministic in (workload, options.seed, layer)."""
    model = workload.model
    sets_UK, count_U = distinct_sets(workload.sample_ids_SLK[:, layer], model.num_experts)
    return LayerProblem(
        index=layer,
        num_experts=model.num_experts,
        top_k=model.top_k,
        num_groups=model.num_groups,
        cluster=cluster,
        options=options,
        sets_UK=sets_UK,
        count_U=count_U,
        load_BE=bootstrap_loads(workload, layer, options.seed),
        coact_EE=workload.coact_LEE[layer],
        seed=int(np.random.SeedSequence([options.seed, layer]).generate_state(1, np.uint64)[0]),
    )


def bootstrap_loads(workload: Workload, layer: int, seed: int) -> npt.NDArray[np.float64]:
    """Shares of load, float64 [1 + BOOTSTRAPS, E]: the exact one, then resamples of the requests with replacement.

    The same requests are drawn for every layer. Balance that holds on average over them holds on requests not seen.
    """
    exact = workload.load_LE[layer].astype(np.float64)
    num_requests = len(workload.profile_key_Q)
    rows = [exact]
    if num_requests > 1:
        rng = np.random.default_rng(np.random.SeedSequence([seed, 0xB007]))
        weight_BQ = rng.multinomial(num_requests, np.full(num_requests, 1 / num_requests), size=BOOTSTRAPS)
        rows += list(weight_BQ.astype(np.float64) @ workload.profile_QLE[:, layer].astype(np.float64))
    loads = np.stack([row if row.sum() > 0 else exact for row in rows])
    return loads / loads.sum(axis=1, keepdims=True)
