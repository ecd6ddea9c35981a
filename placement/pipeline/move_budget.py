"""Share a budget of moves among the layers: the best choice of one point of every front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from placement.pipeline.move_front import Point

_INFEASIBLE = 1e9


def spend(fronts: Sequence[Sequence[Point]], max_moves: int | None) -> list[Point]:
    """One point of every layer's front with at most `max_moves` moves in all and the lowest sum of objectives.

    Exact, by dynamic programming over layers and moves. The first points of all fronts fit the budget together; maps
    beyond a cap on imbalance are taken only where there is no other way.
    """
    most = sum(front[-1].moves for front in fronts)
    budget = most if max_moves is None else min(max_moves, most)
    lowest_M = np.zeros(budget + 1)  # lowest cost of the layers so far with at most M moves
    choices = []
    for front in fronts:
        total_XM = np.full((len(front), budget + 1), np.inf)
        for x, point in enumerate(front):
            if point.moves <= budget:
                total_XM[x, point.moves :] = lowest_M[: budget + 1 - point.moves] + _value(point)
        choices.append(total_XM.argmin(axis=0))  # argmin gives the first of equal costs, which moves least
        lowest_M = total_XM.min(axis=0)
    chosen = []
    left = budget
    for front, choice_M in zip(reversed(fronts), reversed(choices), strict=True):
        chosen.append(front[choice_M[left]])
        left -= chosen[-1].moves
    return chosen[::-1]


def _value(point: Point) -> float:
    return point.score.objective + (0.0 if point.score.feasible else _INFEASIBLE * (1.0 + point.score.excess))
