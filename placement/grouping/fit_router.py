"""The router of a placement, from what its homes save on the training requests."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.core.choices import TOKEN_TOLERANCE
from placement.core.cluster import Cluster
from placement.cost.step_time import balance_in_sends
from placement.grouping.fit_predictor import Fitted
from placement.grouping.home_costs import HomeCosts
from placement.grouping.prices import AHEAD_REQUESTS, HORIZON, MOST_SCORES, Prices, rows_by_tokens
from placement.grouping.router import BAND, SLACK_REQUESTS, Router
from placement.workload.workload import Workload

ENOUGH = 0.995  # the chosen layers must bring this share of the gain of all layers
PREFIX_SHARE = 0.25


def fit_router(
    costs: HomeCosts,
    workload: Workload,
    cluster: Cluster,
    learned: Fitted | None = None,
    *,
    tolerance: float = TOKEN_TOLERANCE,
) -> tuple[Router, float]:
    """The router, and what share of all layers' gain its layers keep.

    Layers are added one by one, each time the one with which the homes of the training requests save most, chosen from
    a quarter of their counts (drawn at random: a router sees the beginning of a request); until they keep ENOUGH of
    what all layers together save. Fewer layers are less to count and to send to the router.

    Prices rest on what was foretold of training requests, or, without a predictor, on what those counts say.
    """
    saved_LEN = costs.saved_LEN / np.maximum(costs.load_LE, 1)[:, :, None]
    rng = np.random.default_rng(np.random.SeedSequence([workload.seed & (2**63 - 1), 0x5E1EC7]))
    counts_QLE = rng.binomial(workload.profile_QLE.astype(np.int64), PREFIX_SHARE).astype(np.float32)
    # what a layer's own homes save: by the counts that were drawn (to choose), and by all counts (to judge)
    drawn_LQN = np.einsum("qle,len->lqn", counts_QLE, saved_LEN, optimize=True)
    whole_QN = np.einsum("qle,len->qn", workload.profile_QLE.astype(np.float32), saved_LEN, optimize=True)
    layers, kept = _choose_layers(drawn_LQN, whole_QN)
    busy = costs.tokens_Q[costs.tokens_Q > 0]
    visited = float(costs.load_LE[layers].sum() / (len(layers) * busy.sum())) if len(busy) else workload.model.top_k
    seen_Q = np.maximum(counts_QLE[:, layers].sum(axis=(1, 2)) / max(visited, 1e-9), 1e-9)
    drawn_QN = _beside_mean(drawn_LQN[layers].sum(axis=0) / seen_Q[:, None])
    all_Q = np.maximum(workload.profile_QLE.sum(axis=(1, 2)) / max(visited, 1e-9), 1e-9)
    scale = float((drawn_QN * _beside_mean(whole_QN / all_Q[:, None])).sum() / max(float((drawn_QN**2).sum()), 1e-12))
    score_SN = drawn_QN * max(scale, 0.0) if learned is None else learned.score_SN
    rows = rows_by_tokens(all_Q if learned is None else learned.tokens_S, MOST_SCORES)
    sends = float(costs.cost_LQN.mean(axis=2).sum() / max(int(busy.sum()), 1))
    computed = workload.model.num_layers * balance_in_sends(cluster, visited)
    prices = (
        Prices(
            score_SN=score_SN[rows].round(4).astype(np.float32),
            request_tokens=float(round(busy.mean(), 1)),
            horizon=HORIZON,
            tolerance=tolerance,
            ahead_tokens=float(round(AHEAD_REQUESTS * busy.mean(), 1)),
        )
        if len(busy)
        else None
    )
    router = Router(
        num_layers=workload.model.num_layers,
        top_k=int(visited) if visited == int(visited) else round(visited, 4),
        layers=tuple(layers),
        saved_MEN=saved_LEN[layers].round(4).astype(np.float32),
        band=BAND,
        slack_tokens=float(round(SLACK_REQUESTS * busy.mean(), 1)) if len(busy) else 0.0,
        prices=prices,
        predictor=None if learned is None else learned.predictor,
        counts_scale=round(max(scale, 0.0), 4),
        prefix_sends=round(sends + computed, 4),
    )
    return router, kept


def _beside_mean(score_QN: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(score_QN - score_QN.mean(axis=1, keepdims=True))


def _choose_layers(drawn_LQN: npt.NDArray[np.float64], whole_QN: npt.NDArray[np.float64]) -> tuple[list[int], float]:
    """Layers, ascending, and the share of the gain of all that they keep."""

    def gain(score_QN: npt.NDArray[np.float64]) -> float:
        best_Q = score_QN.argmax(axis=1)
        return float((np.take_along_axis(whole_QN, best_Q[:, None], axis=1)[:, 0] - whole_QN.mean(axis=1)).sum())

    full = gain(drawn_LQN.sum(axis=0))
    if full <= 0:  # nothing tells homes apart
        return [0], 1.0
    chosen: list[int] = []
    score_QN, kept = np.zeros_like(whole_QN), 0.0
    while kept < ENOUGH and len(chosen) < len(drawn_LQN):
        left = [layer for layer in range(len(drawn_LQN)) if layer not in chosen]
        gains = [gain(score_QN + drawn_LQN[layer]) for layer in left]
        chosen.append(left[int(np.argmax(gains))])
        score_QN = score_QN + drawn_LQN[chosen[-1]]
        kept = gain(score_QN) / full
    return sorted(chosen), min(kept, 1.0)
