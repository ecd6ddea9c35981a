"""The part of a Lagrangian bound that sees top-k sets: each alone, with the cheapest of all its splits over nodes.

Every feature of every set has a multiplier theta, and a split costs its nodes + theta . features. Features are sums over
blocks, so only the 2^K subsets of a set are priced, and splits are sums of table entries. There are 15 partitions of 4
experts, 203 of 6 and 4140 of 8: where that is too much, all features of one kind share one multiplier, and how many of
them a split has is all that counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.cost.adam import ADAM_FIRST, ADAM_SECOND, ADAM_TINY, Adam
from placement.cost.set_partitions import Splits, even_splits, host_splits, node_splits

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_CELLS = 4_000_000  # sets * splits looked at in one iteration; the lightest sets beyond get one multiplier
MOST_TOP_K = 8  # 4140 partitions; 9 have 21,147
MOST_EXPONENT = 11.5  # splits with a chance below 1e-5 of the best one's are left out of the gradient


class SetSide(NamedTuple):
    """Sets with a multiplier for each feature.

    cell_UF   int64 [U, F], where the shared side has each feature of each set
    weight_U  float64 [U], what a node costs
    """

    cell_UF: Ints
    weight_U: Floats
    splits: Splits


class EvenSide(NamedTuple):
    """Sets with a multiplier for each kind of feature.

    cost_C     float64 [C], of the splits that differ in it or in count_CD
    count_CD   float64 [C, kinds], how many features of each kind they have
    size_D     how many features of each kind a set has, in their order
    """

    cell_UF: Ints
    weight_U: Floats
    cost_C: Floats
    count_CD: Floats
    size_D: list[int]


def set_sides(
    sets_UK: npt.NDArray[np.integer],
    weight_U: Floats,
    num_experts: int,
    num_nodes: int,
    slots_per_node: int,
    *,
    hosts: bool = False,
) -> tuple[SetSide, EvenSide]:
    """The heaviest sets, as many as there is time for, and the others.

    Cells are u * E + v for the pair u < v, then, with hosts, E * E + u for the hosts of u.
    """
    top_k = sets_UK.shape[1]
    exact = top_k <= MOST_TOP_K
    make = host_splits if hosts else node_splits
    splits = make(top_k if exact else 0, num_nodes, slots_per_node)
    order_U = np.argsort(-weight_U, kind="stable")
    first, second = np.triu_indices(top_k, 1)
    sets_UK = np.sort(sets_UK[order_U].astype(np.int64), axis=1)
    cell_UF = sets_UK[:, first] * num_experts + sets_UK[:, second]
    if hosts:
        cell_UF = np.concatenate([cell_UF, num_experts**2 + sets_UK], axis=1)
    weight_U = weight_U[order_U]
    cut = MOST_CELLS // len(splits.parts_PJ) if exact else 0
    cost_C, count_CD = even_splits(top_k, num_nodes, slots_per_node, hosts=hosts)
    size_D = [len(first), top_k] if hosts else [len(first)]
    return SetSide(cell_UF[:cut], weight_U[:cut], splits), EvenSide(cell_UF[cut:], weight_U[cut:], cost_C, count_CD, size_D)


@nb.njit(cache=True, nogil=True)
def add_rewards(side: SetSide, theta_UF: Floats, reward_V: Floats) -> None:
    """Add weight * theta at the cell of every feature: what the shared side earns for it."""
    for u in range(side.cell_UF.shape[0]):
        for f in range(side.cell_UF.shape[1]):
            reward_V[side.cell_UF[u, f]] += side.weight_U[u] * theta_UF[u, f]


@nb.njit(cache=True, nogil=True)
def ascend_sets(
    side: SetSide,
    theta_UF: Floats,
    next_UF: Floats,
    adam: Adam,
    shared_V: Floats,
    smoothing: float,
    stride: float,
) -> tuple[float, float]:
    """The exact value of the sets at theta, and a step uphill on the smoothed one, into `next_UF`.

    shared_V   float64 [V], what the shared side has of each feature, with which the sets should agree
    smoothing  temperature of the softmax over splits, in nodes

    Returns the sum of weight * least cost, and the sum of the magnitudes that were added up, for the rounding error.
    """
    splits = side.splits
    num_parts, most_blocks = splits.parts_PJ.shape
    num_features = side.cell_UF.shape[1]
    subsets = splits.ptr_S.shape[0] - 1
    entries = subsets * splits.most_copies
    cost_S, seen_S, cost_P = np.zeros(entries), np.zeros(entries), np.empty(num_parts)
    seen_F = np.empty(num_features)
    total, magnitude = 0.0, 0.0
    for u in range(side.cell_UF.shape[0]):
        size_of_theta = 0.0
        for f in range(num_features):
            size_of_theta += abs(theta_UF[u, f])
        for s in range(1, subsets):
            cost = 0.0
            for d in range(splits.ptr_S[s], splits.ptr_S[s + 1]):
                cost += theta_UF[u, splits.feature_D[d]]
            for copies in range(splits.most_copies):
                cost_S[copies * subsets + s] = (copies + 1) * cost
        least = np.inf
        for p in range(num_parts):
            cost = splits.cost_P[p]
            for j in range(most_blocks):
                cost += cost_S[splits.parts_PJ[p, j]]
            cost_P[p] = cost
            least = min(least, cost)
        total += side.weight_U[u] * least
        magnitude += side.weight_U[u] * (splits.most_copies * size_of_theta + most_blocks)
        seen_S[:] = 0.0
        norm = 0.0
        for p in range(num_parts):
            if cost_P[p] - least < MOST_EXPONENT * smoothing:
                chance = np.exp((least - cost_P[p]) / smoothing)
                norm += chance
                for j in range(most_blocks):
                    seen_S[splits.parts_PJ[p, j]] += chance
        seen_F[:] = 0.0
        for s in range(1, subsets):
            seen = 0.0
            for copies in range(splits.most_copies):
                seen += (copies + 1) * seen_S[copies * subsets + s]
            if seen > 0.0:
                for d in range(splits.ptr_S[s], splits.ptr_S[s + 1]):
                    seen_F[splits.feature_D[d]] += seen
        for f in range(num_features):
            gradient = seen_F[f] / norm - shared_V[side.cell_UF[u, f]]
            adam.first[u, f] += (1 - ADAM_FIRST) * (gradient - adam.first[u, f])
            adam.second[u, f] += (1 - ADAM_SECOND) * (gradient * gradient - adam.second[u, f])
            moved = theta_UF[u, f] + stride * adam.first[u, f] / (np.sqrt(adam.second[u, f]) + ADAM_TINY)
            next_UF[u, f] = max(moved, splits.least_F[f])
    return total, magnitude


def add_even_rewards(side: EvenSide, theta_UD: Floats, reward_V: Floats) -> None:
    """As `add_rewards`."""
    worth_UF = np.repeat(side.weight_U[:, None] * theta_UD, side.size_D, axis=1)
    reward_V += np.bincount(side.cell_UF.ravel(), worth_UF.ravel(), len(reward_V))


def even_sets(side: EvenSide, theta_UD: Floats, shared_V: Floats, smoothing: float) -> tuple[float, float, Floats]:
    """As `ascend_sets`, but returns the gradient instead of taking the step."""
    cost_UC = side.cost_C + theta_UD @ side.count_CD.T
    least_U = cost_UC.min(axis=1)
    chance_UC = np.exp((least_U[:, None] - cost_UC) / smoothing)
    mean_UD = (chance_UC @ side.count_CD) / chance_UC.sum(axis=1, keepdims=True)
    magnitude = float(side.weight_U @ (np.abs(theta_UD) @ side.count_CD.max(axis=0) + side.cost_C.max()))
    of_kind = np.split(shared_V[side.cell_UF], np.cumsum(side.size_D)[:-1], axis=1)
    shared_UD = np.stack([shared_UF.sum(axis=1) for shared_UF in of_kind], axis=1)
    return float(side.weight_U @ least_U), magnitude, mean_UD - shared_UD
