"""The part of a Lagrangian bound that sees top-k sets: each alone, with the cheapest of all its splits over nodes.

Every feature of every set has a multiplier theta, and a split costs its nodes + theta . features. Features are sums
over blocks, so only the 2^K subsets of a set are priced, and splits are sums of table entries. There are 15 partitions
of 4 experts, 203 of 6 and 4140 of 8: where that is too much, `set_batches` goes over them by a recursion. It knows no
copies; with those the sets take turns, and at first all features of one kind share one multiplier: how many of them a
split has is all that counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.bounds.dual_ascent import ADAM_FIRST, ADAM_SECOND, ADAM_TINY, Adam, adam_bias
from placement.bounds.set_batches import ascend_batches, recursion
from placement.bounds.set_partitions import Splits, even_splits, home_splits, host_splits, node_splits

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_CELLS = 4_000_000  # sets * splits that one iteration looks at one by one
MOST_TOP_K = 8  # 4140 partitions; 9, or 8 and a home, have 21,147 (11,051 over 4 nodes)
EVEN_SHARE = 0.25  # of the iterations, where sets take turns afterwards
SWEEPS_BETWEEN_JUDGING = 4
MOST_EXPONENT = 11.5  # splits with a chance below 1e-5 of the best one's are left out of the gradient


class SetSide(NamedTuple):
    """Sets of one size, by falling weight.

    cell_UF   int64 [U, F], where the shared side has each feature of each set
    weight_U  float64 [U], what a node costs
    """

    cell_UF: Ints
    weight_U: Floats
    splits: Splits


class SetClimb:
    """The multipliers' way uphill on the side of the sets.

    Where one set has too many splits, all features of a kind share one multiplier for good.
    """

    def __init__(
        self,
        sets_UK: npt.NDArray[np.integer],
        weight_U: Floats,
        num_elements: int,
        num_nodes: int,
        slots_per_node: int,
        *,
        hosts: bool = False,
        home_U: npt.NDArray[np.integer] | None = None,
    ) -> None:
        """Cells are u * V + v for the pair u < v, then, with hosts, V * V + u for the hosts of u.

        num_elements  V: experts, and then the nodes' homes if any
        home_U        int [U], which element the home of each set is; None: it is random
        """
        top_k, home = sets_UK.shape[1], home_U is not None
        self.exact = top_k <= MOST_TOP_K
        shape = (top_k if self.exact else 0, num_nodes, slots_per_node)
        random = host_splits if hosts else node_splits
        splits = home_splits(*shape, hosts=hosts) if home else random(*shape)
        order_U = np.argsort(-weight_U, kind="stable")
        first, second = np.triu_indices(top_k, 1)
        sets_UK = np.sort(sets_UK[order_U].astype(np.int64), axis=1)
        cells = [sets_UK[:, first] * num_elements + sets_UK[:, second]]
        if hosts:
            cells.append(num_elements**2 + sets_UK)
        if home_U is not None:
            cells.append(sets_UK * num_elements + home_U[order_U, None])
        cell_UF = np.concatenate(cells, axis=1)
        self.cells = num_elements * (num_elements + hosts)
        self.side = SetSide(cell_UF, weight_U[order_U], splits)
        self.size_D = [kind.shape[1] for kind in cells]  # features of each kind
        self.cost_C, self.count_CD = even_splits(top_k, num_nodes, slots_per_node, hosts=hosts, home=home)
        looks = len(cell_UF) * len(splits.parts_PJ)
        self.dear = looks > MOST_CELLS
        self.turns = -(-looks // MOST_CELLS) if hosts and self.dear else 1
        self.steps = None
        if self.dear and not hosts:
            self.steps = recursion(top_k + home, num_nodes, slots_per_node, home=home)
        self.free = float(weight_U.sum()) if home else 0.0  # the home's own block costs nothing
        self.adam = Adam.like(np.zeros(cell_UF.shape))
        self.even_adam = Adam.like(np.zeros((len(cell_UF), len(self.size_D))))
        self.least = 0.0 if hosts else -np.inf  # as `Splits.least_F`
        self.own_since: int | None = None  # step at which features got multipliers of their own

    def first(self, theta_D: list[float]) -> Floats:
        """Multipliers float64 [U, F] from one for each kind."""
        return np.tile(np.repeat(theta_D, self.size_D), (len(self.side.cell_UF), 1))

    def rewards(self, theta_UF: Floats) -> Floats:
        """What the shared side earns for each feature, float64 [V]."""
        reward_V = np.zeros(self.cells)
        add_rewards(self.side, theta_UF, reward_V)
        return reward_V

    def judge_and_ascend(
        self,
        step: int,
        progress: float,
        last: bool,
        theta_UF: Floats,
        shared_V: Floats,
        smoothing: float,
        stride: float,
    ) -> tuple[float, float, Floats]:
        """The exact sum of weight * least cost, a magnitude for its rounding error, and multipliers after a step
        uphill.

        The sum is -inf where it was not computed: while sets take turns it is dear. `stride` is without `adam_bias`.
        """
        if self.own_since is None and self.exact and (self.turns == 1 or progress >= EVEN_SHARE):
            self.own_since = step
        if self.own_since is None:
            theta_UD = (
                theta_UF[:, np.maximum(np.cumsum(self.size_D) - 1, 0)]
                if theta_UF.size
                else np.zeros((len(theta_UF), len(self.size_D)))
            )
            value, size, slope_UD = even_sets(self, theta_UD, shared_V, smoothing)
            theta_UD = self.even_adam.ascend(theta_UD, slope_UD, stride * adam_bias(step))
            return value, size, np.repeat(np.maximum(theta_UD, self.least), self.size_D, axis=1)
        sweep, turn = divmod(step - self.own_since, self.turns)
        moved_UF = theta_UF.copy()
        begin, end = (len(moved_UF) * t // self.turns for t in (turn, turn + 1))
        stride *= adam_bias(sweep)
        if self.steps is not None:
            value, size = ascend_batches(
                self.side.cell_UF,
                self.side.weight_U,
                self.side.splits.ptr_S,
                self.side.splits.feature_D,
                self.steps,
                moved_UF,
                self.adam,
                shared_V,
                smoothing,
                stride,
            )
            return value - self.free, size, moved_UF
        value, size = ascend_sets(self.side, begin, end, moved_UF, self.adam, shared_V, smoothing, stride)
        if self.turns > 1:
            judged = last or (turn == 0 and sweep % SWEEPS_BETWEEN_JUDGING == 0)
            value, size = judge_sets(self.side, theta_UF) if judged else (-np.inf, 0.0)
        return value, size, moved_UF


@nb.njit(cache=True, nogil=True)
def add_rewards(side: SetSide, theta_UF: Floats, reward_V: Floats) -> None:
    """Add weight * theta at the cell of every feature: what the shared side earns for it."""
    for u in range(side.cell_UF.shape[0]):
        for f in range(side.cell_UF.shape[1]):
            reward_V[side.cell_UF[u, f]] += side.weight_U[u] * theta_UF[u, f]


@nb.njit(cache=True, nogil=True, inline="always")
def _price_splits(splits: Splits, theta_F: Floats, cost_S: Floats, cost_P: Floats) -> float:
    """Write what the subsets and the splits of a set cost; returns the least."""
    num_parts, most_blocks = splits.parts_PJ.shape
    subsets = splits.ptr_S.shape[0] - 1
    for s in range(1, subsets):
        cost = 0.0
        for d in range(splits.ptr_S[s], splits.ptr_S[s + 1]):
            cost += theta_F[splits.feature_D[d]]
        for copies in range(splits.most_copies):
            cost_S[copies * subsets + s] = (copies + 1) * cost
    least = np.inf
    for p in range(num_parts):
        cost = splits.cost_P[p]
        for j in range(most_blocks):
            cost += cost_S[splits.parts_PJ[p, j]]
        cost_P[p] = cost
        least = min(least, cost)
    return float(least)


@nb.njit(cache=True, nogil=True)
def judge_sets(side: SetSide, theta_UF: Floats) -> tuple[float, float]:
    """The sum of weight * least cost, and the sum of the magnitudes that were added up, for the rounding error."""
    splits = side.splits
    cost_S = np.zeros((splits.ptr_S.shape[0] - 1) * splits.most_copies)
    cost_P = np.empty(splits.parts_PJ.shape[0])
    total, magnitude = 0.0, 0.0
    for u in range(side.cell_UF.shape[0]):
        total += side.weight_U[u] * _price_splits(splits, theta_UF[u], cost_S, cost_P)
        magnitude += side.weight_U[u] * (splits.most_copies * np.abs(theta_UF[u]).sum() + splits.parts_PJ.shape[1])
    return total, magnitude


@nb.njit(cache=True, nogil=True)
def ascend_sets(
    side: SetSide, begin: int, end: int, theta_UF: Floats, adam: Adam, shared_V: Floats, smoothing: float, stride: float
) -> tuple[float, float]:
    """A step uphill of the multipliers of the sets begin..end, in place; returns what `judge_sets` does, of those
    before.

    shared_V   float64 [V], what the shared side has of each feature, with which the sets should agree
    smoothing  temperature of the softmax over splits, in nodes
    """
    splits = side.splits
    num_parts, most_blocks = splits.parts_PJ.shape
    num_features = side.cell_UF.shape[1]
    subsets = splits.ptr_S.shape[0] - 1
    entries = subsets * splits.most_copies
    cost_S, seen_S, cost_P = np.zeros(entries), np.zeros(entries), np.empty(num_parts)
    seen_F = np.empty(num_features)
    total, magnitude = 0.0, 0.0
    for u in range(begin, end):
        least = _price_splits(splits, theta_UF[u], cost_S, cost_P)
        total += side.weight_U[u] * least
        magnitude += side.weight_U[u] * (splits.most_copies * np.abs(theta_UF[u]).sum() + most_blocks)
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
            theta_UF[u, f] = max(moved, splits.least_F[f])
    return total, magnitude


def even_sets(climb: SetClimb, theta_UD: Floats, shared_V: Floats, smoothing: float) -> tuple[float, float, Floats]:
    """As `judge_sets`, with one multiplier for all features of a kind; and the gradient of the smoothed value."""
    cost_UC = climb.cost_C + theta_UD @ climb.count_CD.T
    least_U = cost_UC.min(axis=1)
    chance_UC = np.exp((least_U[:, None] - cost_UC) / smoothing)
    mean_UD = (chance_UC @ climb.count_CD) / chance_UC.sum(axis=1, keepdims=True)
    weight_U = climb.side.weight_U
    magnitude = float(weight_U @ (np.abs(theta_UD) @ climb.count_CD.max(axis=0) + climb.cost_C.max()))
    of_kind = np.split(shared_V[climb.side.cell_UF], np.cumsum(climb.size_D)[:-1], axis=1)
    shared_UD = np.stack([shared_UF.sum(axis=1) for shared_UF in of_kind], axis=1)
    return float(weight_U @ least_U), magnitude, mean_UD - shared_UD
