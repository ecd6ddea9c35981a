"""Workload -> one LayerProblem a layer."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.sets import distinct_sets, distinct_sets_with_homes
from placement.solvers.mixtures import Mixtures
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.workload.mixed import MixedWorkload
from placement.workload.workload import Workload

BOOTSTRAPS, MOST_BOOTSTRAPS = 64, 128
COPIES_BOOTSTRAPS, FEWEST_BOOTSTRAPS = 6144, 16
BOOTSTRAP_SHARE = 0.25
BALANCE_BOOTSTRAPS, BALANCE_DRAWN = 16, 8  # where balance alone counts: bootstraps, and requests of each at most


def layer_problem(
    workload: Workload | MixedWorkload,
    cluster: Cluster,
    options: Options,
    layer: int,
    home_S: npt.NDArray[np.int32] | None = None,
    domain_QD: npt.NDArray[np.bool_] | None = None,
) -> LayerProblem:
    """Everything that a solver needs for one layer; deterministic in (workload, options.seed, layer).

    Args:
        workload: what was counted of the training requests; of several captures their mixture by weight.
        cluster: where the slots are.
        options: how to solve.
        layer: position of the layer among the MoE layers.
        home_S: home node of each sampled token, int32 [S], -1: uniformly random; None: all are.
        domain_QD: which of the workload's request profiles are of which domain, bool [Q, D], where domains are known.
    """
    if isinstance(workload, MixedWorkload):
        parts = [layer_problem(part, cluster, options, layer) for part in workload.parts]
        weight_W = np.array(workload.weight_W)
        mean_E = weight_W @ np.stack([part.load_E for part in parts])
        return Mixtures(replace(parts[0], load_BE=mean_E[None]), parts).problem(weight_W, parts[0].seed)
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
        load_BE=_load_rows(workload, cluster, options, layer, domain_QD),
        coact_EE=workload.coact_LEE[layer],
        home_U=home_U,
        seed=int(np.random.SeedSequence([options.seed, layer]).generate_state(1, np.uint64)[0]),
    )


def _load_rows(
    workload: Workload,
    cluster: Cluster,
    options: Options,
    layer: int,
    domain_QD: npt.NDArray[np.bool_] | None,
) -> npt.NDArray[np.float64]:
    """The exact load and bootstraps; where balance alone counts also that of every domain, and bootstraps of fewer
    requests: nothing is paid for what they ask, and domains that have a map's balance held out have it by them."""
    if options.sends_count:
        return bootstrap_loads(workload, layer, options.seed, num_bootstraps(workload.model.num_experts, cluster))
    rows_BE = bootstrap_loads(workload, layer, options.seed, BALANCE_BOOTSTRAPS, most_drawn=BALANCE_DRAWN)
    if domain_QD is None:
        return rows_BE
    load_DE = domain_QD.T.astype(np.float64) @ workload.profile_QLE[:, layer]
    load_DE = load_DE[load_DE.any(axis=1)]
    return np.concatenate([rows_BE, load_DE / load_DE.sum(axis=1, keepdims=True)])


def exact_load(workload: Workload, layer: int) -> npt.NDArray[np.float64]:
    """Shares of load, float64 [1, E]: all that is known where requests are not told apart."""
    load_E = workload.load_LE[layer].astype(np.float64)
    if not load_E.any():  # of counts a few requests may be drawn, which need not visit every layer
        load_E = np.ones(len(load_E))
    return np.asarray(load_E / load_E.sum())[None]


def num_bootstraps(num_experts: int, cluster: Cluster) -> int:
    """As many as loads have directions, up to a limit; with copies, where each costs a search more, fewer."""
    if cluster.num_slots > num_experts:
        return int(np.clip(COPIES_BOOTSTRAPS // num_experts, FEWEST_BOOTSTRAPS, BOOTSTRAPS))
    return int(np.clip(num_experts, BOOTSTRAPS, MOST_BOOTSTRAPS))


def bootstrap_loads(
    workload: Workload, layer: int, seed: int, number: int, *, most_drawn: int | None = None
) -> npt.NDArray[np.float64]:
    """Shares of load, float64 [B, E]: the exact one, then so many bootstraps, each of a quarter of the requests or of
    `most_drawn` if that is less.

    Fewer requests than there are vary more: experts of one topic on one rank then cost what they will cost on others;
    a map that was fitted to n requests meets m new ones with the variance of n m / (n + m).

    The bootstraps are parametric. Drawn requests would miss the exact mean and covariance by chance, and a search fits
    what they miss; these have the mean exactly, and the covariance but for the directions of least variance where
    bootstraps are fewer than experts: eigenvectors times their deviations, rotated at random.
    """
    exact_E = workload.load_LE[layer].astype(np.float64)
    profile_QE = workload.profile_QLE[:, layer].astype(np.float64)
    num_requests, total = len(profile_QE), profile_QE.sum()
    if num_requests < 2 or total == 0 or exact_E.sum() == 0:
        return exact_load(workload, layer)
    mean_E = exact_E / exact_E.sum()
    apart_QE = (profile_QE - profile_QE.sum(axis=1, keepdims=True) * mean_E) * (num_requests / total)
    drawn = max(int(BOOTSTRAP_SHARE * num_requests), 1)
    drawn = drawn if most_drawn is None else min(drawn, most_drawn)
    variance_V, vector_EV = np.linalg.eigh(apart_QE.T @ apart_QE / (num_requests * drawn))
    most = min(number - 1, len(mean_E))
    scale_V = np.sqrt(np.maximum(variance_V[::-1][:most], 0.0))
    vector_EV = vector_EV[:, ::-1][:, :most]
    vector_EV = vector_EV * np.sign(vector_EV[np.abs(vector_EV).argmax(axis=0), np.arange(most)])
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0xB007]))
    normal_BV = rng.standard_normal((number, most))
    rotation_BV, _ = np.linalg.qr(normal_BV - normal_BV.mean(axis=0))
    load_BE = mean_E + np.sqrt(number) * (rotation_BV * scale_V) @ vector_EV.T
    loads = np.concatenate([mean_E[None], np.maximum(load_BE, 0.0)])
    return np.asarray(loads / loads.sum(axis=1, keepdims=True))
