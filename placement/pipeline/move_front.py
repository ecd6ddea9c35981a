"""Better maps of one layer that are few moves away from the current one: the front of (moves, objective).

Annealing with a price on every move, once from the current map with falling prices and once from the best map found
without a limit with rising ones; then walks from point to point of the front, step by best step.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.placement import wasted_P
from placement.core.relabel import holds_GE, relabel
from placement.solvers.annealing.anneal import MOVES, QUENCH, REPLICA_MOVES, search_of
from placement.solvers.annealing.anneal_common import costs_of, incidence
from placement.solvers.moves import fill_wasted
from placement.solvers.problem import LayerProblem, Score
from placement.support.hash64 import GOLDEN

Row = npt.NDArray[np.int32]

CURRENT, FILLED, ANNEAL = "current", "filled", "anneal"
RUN_SHARE = 0.1  # a price gets this share of the moves of an unlimited search
PRICE_STEP = 2.0
LOWEST_PRICE = 0.25  # in units of a move's mean gain in the unlimited search
MOST_SCORES, FEWEST_SCORES = 1000, 32  # maps on walks that are scored; a work limit takes its share of the first
FREE_SETS = 1 << 17  # scoring so many top-k sets costs next to nothing
SECOND_STEPS = 8  # maps one step away from which all second steps are tried, where there are few


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInUse:
    """One layer before a change.

    phy2log_P  the map to start from: the current one, or where the cluster had another size that with the fewest moves
    held_GE    which rank holds which expert, bool [G, E]
    """

    phy2log_P: Row
    held_GE: npt.NDArray[np.bool_]

    @staticmethod
    def of(phy2log_P: Row, cluster: Cluster, num_experts: int) -> LayerInUse:
        """The layer of a current map of the same cluster."""
        return LayerInUse(phy2log_P=phy2log_P, held_GE=holds_GE(phy2log_P, cluster, num_experts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A map of one layer, found by `solver`: `moves` slots hold an expert that their rank does not hold now."""

    moves: int
    score: Score
    phy2log_P: Row
    solver: str


def point_of(problem: LayerProblem, now: LayerInUse | None, row: Row, solver: str) -> Point:
    """The map, relabelled to move as little as possible from the current one, if there is one."""
    moves = 0
    if now is not None:
        row = relabel(now.phy2log_P, row, problem.cluster, held_GE=now.held_GE)
        moves = int((~now.held_GE[problem.cluster.rank_of_slot_P(), row]).sum())
    return Point(moves=moves, score=problem.score(row), phy2log_P=row, solver=solver)


def front(points: Iterable[Point]) -> list[Point]:
    """Those that are better than all that move less, by ascending moves."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda one: one.moves):
        if kept and not point.score.better_than(kept[-1].score):
            continue
        if kept and kept[-1].moves == point.moves:
            kept.pop()
        kept.append(point)
    return kept


def layer_front(problem: LayerProblem, now: LayerInUse, best: Point) -> list[Point]:
    """The front of the maps that the options' limits allow; the first point is the map to start from, or one that
    moves as little.

    best: the best map that was found without a limit. Deterministic in the problem, unless its deadline cuts it; what
    is found with fewer moves does not depend on the limits.
    """
    limits = (problem.options.max_moves, problem.options.max_moves_per_layer)
    most = min((limit for limit in limits if limit is not None), default=problem.cluster.num_slots)
    start = point_of(problem, now, now.phy2log_P, CURRENT)
    search = _Search(problem, now, start)
    filled = point_of(problem, now, search.filled_P, FILLED)  # `start` again where no slot is wasted
    points = front([start, filled, best, *search.priced(best), *search.few_steps()])
    return [point for point in search.walked(points, most) if point.moves <= most]


class _Search:
    def __init__(self, problem: LayerProblem, now: LayerInUse, start: Point) -> None:
        self.problem, self.now, self.start = problem, now, start
        # annealing needs a map without wasted slots
        self.filled_P = fill_wasted(start.phy2log_P, problem.cluster.num_ranks, problem.load_E)
        self.inc = incidence(problem, problem.num_experts)
        self.costs = costs_of(problem, problem.num_experts)
        self.moves = REPLICA_MOVES if problem.num_redundant else MOVES  # moves of an unlimited search
        share = 1.0 if problem.options.work_limit is None else problem.options.work_limit / self.moves
        free = FREE_SETS // max(len(problem.sets_UK), 1)
        self.most_scores = min(max(int(MOST_SCORES * share), free, FEWEST_SCORES), MOST_SCORES)

    def priced(self, best: Point) -> list[Point]:
        """What annealing finds under falling and rising prices of a move."""
        gain = self._anneal(self.filled_P, 0.0, 0, 0)[1] - self._anneal(best.phy2log_P, 0.0, 0, 0)[1]
        further = best.moves - self.start.moves
        if gain <= 0 or further <= 0:
            return []
        number = 1 + int(np.ceil(np.log(further / LOWEST_PRICE) / np.log(PRICE_STEP)))
        prices = gain / PRICE_STEP ** np.arange(number)
        each = int(RUN_SHARE * (self.problem.options.work_limit or self.moves))
        points: list[Point] = []
        for start, order in ((self.filled_P, prices), (best.phy2log_P, prices[::-1])):
            row = start
            for price in order:
                if self.problem.out_of_time():
                    break
                row, _ = self._anneal(row, float(price), max(each, 1), len(points) + 1)
                points.append(point_of(self.problem, self.now, row, ANNEAL))
                row = points[-1].phy2log_P
        return points

    def _anneal(self, start: Row, price: float, moves: int, run: int) -> tuple[Row, float]:
        """(the best map, its cost with the moves) of one run at a low temperature."""
        problem, row = self.problem, start.copy()
        costs = self.costs._replace(stay_GE=np.where(self.now.held_GE, price, 0.0))
        scale = (problem.assignments or 1.0) / problem.num_experts
        seed = np.uint64((problem.seed - int(GOLDEN) * run) % 2**64)  # the unlimited search adds
        cost = search_of(problem)(row, self.inc, costs, QUENCH.hot * scale, QUENCH.cold * scale, moves, seed)
        return row, cost

    def few_steps(self) -> list[Point]:
        """All maps one step from the current one, and from the best of these, where there are few: annealing may miss
        what tiny budgets need. Second steps wait until no slot is wasted: first ones use wasted slots."""
        slots, redundant = self.problem.cluster.num_slots, self.problem.num_redundant
        steps = slots * (slots / 2 + (self.problem.num_experts if redundant else 0))
        if steps > self.most_scores:
            return []
        first = self._points(_steps(self.problem, self.start.phy2log_P))
        if wasted_P(self.start.phy2log_P, self.problem.cluster.num_ranks).any():
            return first
        first.sort(key=lambda point: (point.score.excess, point.score.objective))
        best = first[: min(int(self.most_scores / steps) - 1, SECOND_STEPS)]
        return first + [far for near in best for far in self._points(_steps(self.problem, near.phy2log_P))]

    def walked(self, points: list[Point], most_moves: int) -> list[Point]:
        """The front with the maps on the way from each point to the next, by the best of the steps that lead there."""
        scores, found = 0, list(points)
        for at, goal in pairwise(points):
            last = min(goal.moves, most_moves)
            while at.moves < last and scores < self.most_scores and not self.problem.out_of_time():
                steps = self._points(_steps(self.problem, at.phy2log_P, goal.phy2log_P))
                if not steps:
                    break
                scores += len(steps)
                at = steps[0]
                for step in steps[1:]:
                    at = step if step.score.better_than(at.score) else at
                found.append(at)
        return front(found)

    def _points(self, rows: Iterable[Row]) -> list[Point]:
        return [point_of(self.problem, self.now, row, ANNEAL) for row in rows]


def _steps(problem: LayerProblem, row: Row, goal_P: Row | None = None) -> Iterator[Row]:
    """Maps one swap or one replaced copy away from `row`; with a goal, those that give a rank one more expert of it."""
    cluster = problem.cluster
    rank_P = cluster.rank_of_slot_P()
    have_GE = holds_GE(row, cluster, problem.num_experts)
    want_GE = np.ones_like(have_GE) if goal_P is None else holds_GE(goal_P, cluster, problem.num_experts)
    wasted = wasted_P(row, cluster.num_ranks)
    may_go_P = np.ones_like(rank_P, dtype=bool) if goal_P is None else wasted | ~want_GE[rank_P, row]
    copies_E = np.bincount(row)
    for p in np.flatnonzero(may_go_P):
        old = row[p]
        for new in np.flatnonzero((want_GE & ~have_GE)[rank_P[p]]):
            if copies_E[old] > 1:
                replaced = row.copy()
                replaced[p] = new
                yield replaced
            for q in np.flatnonzero((row == new) & may_go_P):
                if not have_GE[rank_P[q], old] and (goal_P is not None or p < q):
                    swapped = row.copy()
                    swapped[p], swapped[q] = new, old
                    yield swapped
