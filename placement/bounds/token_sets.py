"""The part of a Lagrangian bound that sees top-k sets: each alone, with the cheapest of all its splits over nodes.

Every feature of every set has a multiplier theta, and a split costs its nodes + theta . features. Features are sums
over blocks, so only the 2^K subsets of a set are priced, and splits are sums of table entries. There are 15 partitions
of 4 experts, 203 of 6 and 4140 of 8: where that is too much, `set_batches` goes over them by a recursion. Where even
that is too much, all features of one kind share one multiplier: how many of them a split has is all that counts.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from placement.bounds.dual_ascent import LONG_MEMORY, Adam, AscentStep, Memory
from placement.bounds.set_batches import ascend_batches, recursion
from placement.bounds.set_partitions import (
    SetSide,
    add_rewards,
    ascend_sets,
    even_splits,
    home_splits,
    host_splits,
    judge_sets,
    node_splits,
)
from placement.bounds.set_sizes import by_size
from placement.bounds.spectral_bound import QUICK_EXPERTS

Floats = npt.NDArray[np.float64]

MOST_CELLS = 4_000_000  # sets * splits that one iteration looks at one by one
MOST_SPLITS = 100  # of a set, of more than QUICK_EXPERTS elements, that are looked at one by one
MOST_TOP_K = 8  # 4140 partitions; 9, or 8 and a home, have 21,147 (11,051 over 4 nodes)


class TokenSets:
    """All sets as one side: those of one size without a home are a kind, and so are those with one.

    A given home is an element of its own beside the experts: element E + n is on node n, and no other home is.
    """

    def __init__(
        self,
        sets_UK: npt.NDArray[np.integer],
        weight_U: Floats,
        home_U: npt.NDArray[np.integer] | None,
        num_experts: int,
        num_nodes: int,
        slots_per_node: int,
        *,
        hosts: bool,
        memory: Memory = LONG_MEMORY,
    ) -> None:
        """Kinds: those without a home, then those with one, the largest sets first; at least one set has an expert.

        weight_U: share of the tokens. home_U: int [U], home node of each set, -1: random; None: all are random.
        """
        self.num_elements = num_experts + (num_nodes if home_U is not None else 0)
        shape = (self.num_elements, num_nodes, slots_per_node)
        given_U = np.full(len(sets_UK), -1, dtype=np.int64) if home_U is None else home_U.astype(np.int64)
        # without copies a random home saves the block of one node in N; with them the splits know it
        away = 1.0 if hosts else 1 - 1 / num_nodes
        random, known = np.flatnonzero(given_U < 0), np.flatnonzero(given_U >= 0)
        self.kinds = [
            SetMultipliers(sets_RK, weight_U[random[rows]] * away, *shape, hosts=hosts, memory=memory)
            for rows, sets_RK in by_size(sets_UK[random])
        ] + [
            SetMultipliers(
                sets_RK,
                weight_U[known[rows]],
                *shape,
                hosts=hosts,
                home_U=num_experts + given_U[known[rows]],
                memory=memory,
            )
            for rows, sets_RK in by_size(sets_UK[known])
        ]
        self.top_k = max(kind.top_k for kind in self.kinds)
        self.dear = any(kind.dear for kind in self.kinds)
        self.terms = sum(kind.side.cell_UF.size + len(kind.side.cell_UF) for kind in self.kinds)

    def first(self, thetas_of: Callable[[int], list[float]]) -> tuple[Floats, ...]:
        """Multipliers float64 [U, F] of each kind.

        thetas_of: those of each kind of feature, of sets of some size; the home is paired as experts.
        """
        return tuple(
            kind.first([*thetas_of(kind.top_k), thetas_of(kind.top_k)[0]][: len(kind.size_D)]) for kind in self.kinds
        )

    def rewards(self, thetas: tuple[Floats, ...]) -> Floats:
        """What the shared side earns for each feature, float64 [V]."""
        return np.asarray(sum(kind.rewards(theta_UF) for kind, theta_UF in zip(self.kinds, thetas, strict=True)))

    def judge(self, thetas: tuple[Floats, ...]) -> tuple[float, float]:
        """As that of `SetMultipliers`, of all together."""
        answers = [kind.judge(theta_UF) for kind, theta_UF in zip(self.kinds, thetas, strict=True)]
        return sum(value for value, _ in answers), sum(size for _, size in answers)

    def judge_and_ascend(
        self, step: AscentStep, thetas: tuple[Floats, ...], shared_V: Floats, smoothing: float, stride: float
    ) -> tuple[float, float, tuple[Floats, ...]]:
        """As that of `SetMultipliers`, of all together."""
        answers = [
            kind.judge_and_ascend(step, theta_UF, shared_V, smoothing, stride)
            for kind, theta_UF in zip(self.kinds, thetas, strict=True)
        ]
        values, sizes, moved = zip(*answers, strict=True)
        return sum(values), sum(sizes), moved


class SetMultipliers:
    """The way uphill of the multipliers of all sets of one kind.

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
        memory: Memory = LONG_MEMORY,
        many: bool = False,
    ) -> None:
        """Cells are u * V + v for the pair u < v, then, with hosts, V * V + u for the hosts of u.

        num_elements  V: experts, and then the nodes' homes if any
        home_U        int [U], which element the home of each set is; None: it is random
        many          goes over many sets at once, few as they may be
        """
        self.top_k = top_k = sets_UK.shape[1]
        home = home_U is not None
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
        self.dear = len(cell_UF) * len(splits.parts_PJ) > MOST_CELLS
        self.steps = None
        many = many or (num_elements > QUICK_EXPERTS and len(splits.parts_PJ) > MOST_SPLITS)
        if self.exact and (many or self.dear):
            self.steps = recursion(top_k + home, num_nodes, slots_per_node, home=home, hosts=hosts)
        self.free = float(weight_U.sum()) if home else 0.0  # the home's own block costs nothing
        self.adam = Adam.like(np.zeros(cell_UF.shape), memory)
        self.even_adam = Adam.like(np.zeros((len(cell_UF), len(self.size_D))), memory)
        self.least = 0.0 if hosts else -np.inf  # the meaning is that of `Splits.least_F`

    def first(self, theta_D: list[float]) -> Floats:
        """Multipliers float64 [U, F] from one for each kind."""
        return np.tile(np.repeat(theta_D, self.size_D), (len(self.side.cell_UF), 1))

    def rewards(self, theta_UF: Floats) -> Floats:
        """What the shared side earns for each feature, float64 [V]."""
        reward_V = np.zeros(self.cells)
        add_rewards(self.side, theta_UF, reward_V)
        return reward_V

    def judge(self, theta_UF: Floats) -> tuple[float, float]:
        """The sum of weight * least cost, rounded down, and a magnitude for its rounding error."""
        if not self.exact:
            value, size, _ = even_sets(self, self._of_kinds(theta_UF), np.zeros(self.cells), 1.0)
            return value, size
        if self.steps is None:
            return judge_sets(self.side, theta_UF)
        value, size = ascend_batches(self.side, self.steps, theta_UF, self.adam, np.zeros(self.cells), 1.0, 0.0)
        return value - self.free, size

    def _of_kinds(self, theta_UF: Floats) -> Floats:
        """One multiplier of each kind of feature, float64 [U, D], where all of a kind are alike."""
        if not theta_UF.size:
            return np.zeros((len(theta_UF), len(self.size_D)))
        return theta_UF[:, np.maximum(np.cumsum(self.size_D) - 1, 0)]

    def judge_and_ascend(
        self, step: AscentStep, theta_UF: Floats, shared_V: Floats, smoothing: float, stride: float
    ) -> tuple[float, float, Floats]:
        """The exact sum of weight * least cost, a magnitude for its rounding error, and multipliers after a step
        uphill.

        `stride` is without the bias of Adam's memory.
        """
        if not self.exact:
            theta_UD = self._of_kinds(theta_UF)
            value, size, slope_UD = even_sets(self, theta_UD, shared_V, smoothing)
            theta_UD = self.even_adam.ascend(theta_UD, slope_UD, stride * self.adam.memory.bias(step.number))
            return value, size, np.repeat(np.maximum(theta_UD, self.least), self.size_D, axis=1)
        moved_UF = theta_UF.copy()
        stride *= self.adam.memory.bias(step.number)
        if self.steps is None:
            value, size = ascend_sets(self.side, moved_UF, self.adam, shared_V, smoothing, stride)
            return value, size, moved_UF
        value, size = ascend_batches(self.side, self.steps, moved_UF, self.adam, shared_V, smoothing, stride)
        return value - self.free, size, moved_UF


def even_sets(
    sets: SetMultipliers, theta_UD: Floats, shared_V: Floats, smoothing: float
) -> tuple[float, float, Floats]:
    """As `judge_sets`, with one multiplier for all features of a kind; and the gradient of the smoothed value."""
    cost_UC = sets.cost_C + theta_UD @ sets.count_CD.T
    least_U = cost_UC.min(axis=1)
    chance_UC = np.exp((least_U[:, None] - cost_UC) / smoothing)
    mean_UD = (chance_UC @ sets.count_CD) / chance_UC.sum(axis=1, keepdims=True)
    weight_U = sets.side.weight_U
    magnitude = float(weight_U @ (np.abs(theta_UD) @ sets.count_CD.max(axis=0) + sets.cost_C.max()))
    of_kind = np.split(shared_V[sets.side.cell_UF], np.cumsum(sets.size_D)[:-1], axis=1)
    shared_UD = np.stack([shared_UF.sum(axis=1) for shared_UF in of_kind], axis=1)
    return float(weight_U @ least_U), magnitude, mean_UD - shared_UD
