"""Both kinds of sets of a Lagrangian bound, those of tokens with random homes and those with given homes, as one side.

A given home is an element of its own beside the experts: element E + n is on node n, and no other home is.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.bounds.token_sets import SetClimb

Floats = npt.NDArray[np.float64]


class SetSides:
    """`SetClimb` of the sets without and of those with a home; a kind that there is none of has no rows."""

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
    ) -> None:
        """weight_U: share of the tokens. home_U: int [U], home node of each set, -1: random; None: all are random."""
        self.num_elements = num_experts + (num_nodes if home_U is not None else 0)
        shape = (self.num_elements, num_nodes, slots_per_node)
        random_U = np.ones(len(sets_UK), dtype=bool) if home_U is None else home_U < 0
        # without copies a random home saves the block of one node in N; with them the splits know it
        away = 1.0 if hosts else 1 - 1 / num_nodes
        self.climbs = [SetClimb(sets_UK[random_U], weight_U[random_U] * away, *shape, hosts=hosts)]
        if home_U is not None:
            known_U = ~random_U
            homes = num_experts + home_U[known_U].astype(np.int64)
            self.climbs.append(SetClimb(sets_UK[known_U], weight_U[known_U], *shape, hosts=hosts, home_U=homes))
        self.dear = any(climb.dear for climb in self.climbs)
        self.terms = sum(climb.side.cell_UF.size + len(climb.side.cell_UF) for climb in self.climbs)

    def first(self, theta_D: list[float]) -> tuple[Floats, ...]:
        """Multipliers float64 [U, F] of each climb from one for each kind of feature; the home is paired as experts."""
        return tuple(climb.first([*theta_D, theta_D[0]][: len(climb.size_D)]) for climb in self.climbs)

    def rewards(self, thetas: tuple[Floats, ...]) -> Floats:
        """What the shared side earns for each feature, float64 [V]."""
        return np.asarray(sum(climb.rewards(theta_UF) for climb, theta_UF in zip(self.climbs, thetas, strict=True)))

    def judge_and_ascend(
        self,
        step: int,
        progress: float,
        last: bool,
        thetas: tuple[Floats, ...],
        shared_V: Floats,
        smoothing: float,
        stride: float,
    ) -> tuple[float, float, tuple[Floats, ...]]:
        """As that of `SetClimb`, of all together."""
        answers = [
            climb.judge_and_ascend(step, progress, last, theta_UF, shared_V, smoothing, stride)
            for climb, theta_UF in zip(self.climbs, thetas, strict=True)
        ]
        values, sizes, moved = zip(*answers, strict=True)
        return sum(values), sum(sizes), moved
