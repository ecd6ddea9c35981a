"""Node labels that agree over layers: which node a layer calls 0 is free, until requests have homes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.core.relabel import interchangeable_NN
from placement.grouping.assign import Assignment, assign_homes

STARTS = 8  # layers whose own best homes are tried as the first guess
SWEEPS = 6
_NEVER = 1e30

Floats = npt.NDArray[np.float64]


def align_nodes(
    placement: Placement, cost_LQN: Floats, tokens_Q: npt.NDArray[np.int64], cluster: Cluster, tolerance: float
) -> tuple[Placement, Floats]:
    """The same maps with the nodes of each layer permuted so that common homes of the requests serve all layers.

    cost_LQN  what request q sends in layer l if its home is node n

    In turn, homes are chosen for the labels of the moment and each layer is labelled for the homes (a linear
    assignment); begun from the homes that each of a few layers would choose alone. Only nodes trade places that are
    alike. Returns the placement and its costs.
    """
    alike_NN = interchangeable_NN(cluster)
    if not (alike_NN & ~np.eye(len(alike_NN), dtype=bool)).any():
        return placement, cost_LQN
    gain_L = (cost_LQN.mean(axis=2) - cost_LQN.min(axis=2)).sum(axis=1)
    best, best_order = np.inf, np.tile(np.arange(cluster.num_nodes), (len(cost_LQN), 1))
    for layer in np.argsort(-gain_L, kind="stable")[:STARTS]:
        homes = assign_homes(cost_LQN[layer], tokens_Q, tolerance=tolerance, exact=False)
        cost, order_LN = _sweeps(cost_LQN, tokens_Q, homes, alike_NN, tolerance)
        if cost < best - 1e-9:
            best, best_order = cost, order_LN
    by_node = placement.phy2log_LP.reshape(len(cost_LQN), cluster.num_nodes, -1)
    rows_LP = np.take_along_axis(by_node, best_order[:, :, None], axis=1).reshape(placement.phy2log_LP.shape)
    return replace(placement, phy2log_LP=rows_LP), np.take_along_axis(cost_LQN, best_order[:, None, :], axis=2)


def _sweeps(
    cost_LQN: Floats,
    tokens_Q: npt.NDArray[np.int64],
    homes: Assignment,
    alike_NN: npt.NDArray[np.bool_],
    tolerance: float,
) -> tuple[float, npt.NDArray[np.int64]]:
    """Label and re-home until that no longer helps: the cost, and for each layer the old label of each new node."""
    best, order_LN = np.inf, np.zeros(0, dtype=np.int64)
    for _ in range(SWEEPS):
        tried_LN = np.stack([_labels(cost_QN, homes.home_Q, alike_NN) for cost_QN in cost_LQN])
        cost_QN = np.take_along_axis(cost_LQN, tried_LN[:, None, :], axis=2).sum(axis=0)
        homes = assign_homes(cost_QN, tokens_Q, tolerance=tolerance, exact=False)
        if homes.cost >= best - 1e-9:
            break
        best, order_LN = homes.cost, tried_LN
    return best, order_LN


def _labels(cost_QN: Floats, home_Q: npt.NDArray[np.int32], alike_NN: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    from scipy.optimize import linear_sum_assignment  # a quarter of a second, and only grouping needs it

    num_nodes = cost_QN.shape[1]
    cost_NN = np.zeros((num_nodes, num_nodes))
    np.add.at(cost_NN, home_Q, cost_QN)  # row: new node, the home of these requests; column: old label
    return np.asarray(linear_sum_assignment(np.where(alike_NN, cost_NN, _NEVER))[1])
