"""Names do not matter where hardware is alike: relabel a map so that as little as possible differs from another."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.shape import Shape

Row = npt.NDArray[np.int32]
Ids = npt.NDArray[np.integer]
_NEVER = -(2.0**40)


def moved_P(current_P: Ids, new_P: Ids, cluster: Cluster) -> npt.NDArray[np.bool_]:
    """Slots of the new map whose expert their rank does not hold in the current one, bool [P]: what must be copied."""
    held_GE = holds_GE(current_P, cluster, int(max(current_P.max(), new_P.max())) + 1)
    return np.asarray(~held_GE[cluster.rank_of_slot_P(), new_P])


def holds_GE(phy2log_P: Ids, cluster: Shape, num_experts: int) -> npt.NDArray[np.bool_]:
    """Which rank holds which expert, bool [G, E]."""
    holds = np.zeros((cluster.num_ranks, num_experts), dtype=bool)
    holds[cluster.rank_of_slot_P(), phy2log_P] = True
    return holds


def relabel(
    current_P: Ids,
    new_P: Ids,
    cluster: Cluster,
    *,
    ranks: bool = True,
    held_GE: npt.NDArray[np.bool_] | None = None,
) -> Row:
    """The map of one layer, int32 [P], that serves as `new_P` does and moves the fewest slots away from `current_P`.

    Nodes are permuted where their speeds and links are alike, GPUs of a node where their speeds are; then experts that
    stay on a rank keep their slot, and the others fill the slots that are left, ascending. Under a topology that prices
    every pair of ranks (`rank_cost`), or without `ranks`, only the order of slots changes.

    Args:
        held_GE: What every rank holds before the change, bool [G, E]; None: what `current_P` says.
    """
    num_ranks, gpus = cluster.num_ranks, cluster.gpus_per_node
    rank_G = np.arange(num_ranks)
    if ranks and not cluster.topology.rank_cost:
        num_experts = int(max(current_P.max(), new_P.max())) + 1
        old_GE = holds_GE(current_P, cluster, num_experts) if held_GE is None else held_GE[:, :num_experts]
        keep_GG = old_GE.astype(np.float64) @ holds_GE(new_P, cluster, num_experts).astype(np.float64).T
        keep_GG[cluster.speed_G()[:, None] != cluster.speed_G()] = _NEVER
        node_N, gpu_NNg = _match_nodes(keep_GG, cluster)
        rank_G = (node_N[:, None] * gpus + gpu_NNg[np.arange(cluster.num_nodes), node_N]).ravel()
    old_GS, new_GS = (np.asarray(one).reshape(num_ranks, -1) for one in (current_P, new_P))
    return np.concatenate([_in_place(*pair) for pair in zip(old_GS, new_GS[rank_G], strict=True)])


def _match_nodes(
    keep_GG: npt.NDArray[np.float64], cluster: Cluster
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What keeps the most: the new node for each current one [N], the new GPU for each of a pair of nodes [N, N, g]."""
    nodes, gpus = cluster.num_nodes, cluster.gpus_per_node
    keep_NgNg = keep_GG.reshape(nodes, gpus, nodes, gpus)
    kept_NN = np.full((nodes, nodes), _NEVER)
    gpu_NNg = np.zeros((nodes, nodes, gpus), dtype=np.int64)
    for a, b in zip(*np.nonzero(interchangeable_NN(cluster)), strict=True):
        gpu_NNg[a, b] = _assign(keep_NgNg[a, :, b])
        kept_NN[a, b] = keep_NgNg[a, np.arange(gpus), b, gpu_NNg[a, b]].sum()
    return _assign(kept_NN), gpu_NNg


def _assign(value_XX: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """The permutation with the highest sum of values (whole numbers); of equal ones one that changes little."""
    preferred_XX = value_XX * (len(value_XX) + 1) + np.eye(len(value_XX))
    from scipy.optimize import linear_sum_assignment  # a quarter of a second, and only changes of a map need it

    return np.asarray(linear_sum_assignment(preferred_XX, maximize=True)[1])


def interchangeable_NN(cluster: Cluster) -> npt.NDArray[np.bool_]:
    """Nodes that can trade places, bool [N, N]: GPUs of the same speeds, and the trade leaves all costs as they are."""
    nodes, gpus = cluster.num_nodes, cluster.gpus_per_node
    speed_Ng = np.sort(cluster.speed_G().reshape(nodes, gpus), axis=1)
    alike_NN = (speed_Ng[:, None] == speed_Ng).all(axis=2)
    cost_NN = cluster.node_cost_NN()
    for a, b in zip(*np.nonzero(alike_NN), strict=True):
        trade = np.arange(nodes)
        trade[[a, b]] = b, a
        alike_NN[a, b] = np.array_equal(cost_NN[np.ix_(trade, trade)], cost_NN)
    return np.asarray(alike_NN)


def _in_place(old_S: Ids, new_S: Ids) -> Row:
    """The experts of `new_S`, those that `old_S` holds too in the slots that they have there, each as often as held."""
    left = Counter(new_S.tolist())
    placed_S = np.full(len(old_S), -1, dtype=np.int32)
    for slot, expert in enumerate(old_S.tolist()):
        if left[expert] > 0:
            left[expert] -= 1
            placed_S[slot] = expert
    placed_S[placed_S < 0] = sorted(left.elements())
    return placed_S
