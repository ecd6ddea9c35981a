"""One layer under many prices of imbalance: its front of sends against imbalance.

The weights are walked upward, each search starting from the map of the weight before too: high prices make the
landscape rugged. Then every weight gets the best of all maps that were found. These are the minima of sends + weight *
imbalance over one set of maps, so imbalance never rises with the weight, and of whole placements that take each layer's
map of one weight none dominates another.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import reduce

from placement.pipeline.layer_answer import Answer, LayerReport
from placement.pipeline.move_front import Point, Row, point_of
from placement.solvers import get_solver
from placement.solvers.problem import LayerProblem

WEIGHTS = (0.0, 0.1, 0.25, 0.35, 0.5, 0.75, 1.0, 1.5, 3.0, 6.0, 12.0)
DIGITS = 12  # further digits of the sends differ between equivalent maps


@dataclass(frozen=True, slots=True, kw_only=True)
class Pick:
    """A map of the layer and how it fares."""

    point: Point
    report: LayerReport


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWeights:
    """The map of every weight, ascending, and the one that the options choose."""

    picks: tuple[Pick, ...]
    chosen: Pick


def weights_with(own: float) -> tuple[float, ...]:
    """The weights of a front, ascending, among them `own`."""
    return tuple(sorted({*WEIGHTS, float(own)}))


def solve_weights(problem: LayerProblem, layer_id: int, weights: Sequence[float]) -> LayerWeights:
    """The layer's map for each of the ascending weights, and the one that the options choose.

    That is the map of `options.balance_weight`, one of the weights and the only one with a bound; with a cap on the
    rank imbalance it is the map of fewest sends within. The cap does not bind the others; where no map keeps it, one
    more search looks for such a map. Raises InfeasibleError or LimitError if there is none.
    """
    options = problem.options
    own = weights.index(options.balance_weight)
    solver = get_solver(options.solver)
    uncapped = replace(options, max_imbalance=None)
    under = [
        replace(
            problem,
            options=replace(uncapped, balance_weight=weight, bound=options.bound if number == own else "none"),
        )
        for number, weight in enumerate(weights)
    ]
    solutions = []
    points: list[Point] = []
    starts: tuple[Row, ...] = ()
    for number, priced in enumerate(under):
        deadline = _part_of(problem.deadline, len(weights) - number)
        solution = solver.solve_layer(replace(priced, starts=starts, deadline=deadline))
        solutions.append(solution)
        starts = (solution.phy2log_P,)
        if solution.solver != "given":  # else the map is among the points
            points.append(point_of(priced, None, solution.phy2log_P, solution.solver))
    points.sort(key=lambda point: point.score.expected_imbalance)  # of maps that cost the same the first is taken
    picks = [
        _pick(_best(points, weight), priced, layer_id, solution.status, solution.bound)
        for weight, priced, solution in zip(weights, under, solutions, strict=True)
    ]
    if options.max_imbalance is None:
        return LayerWeights(picks=tuple(picks), chosen=picks[own])
    within = [point for point in points if problem.score(point.phy2log_P).feasible]
    if not within:
        search = replace(problem, options=replace(options, bound="none"), starts=(points[0].phy2log_P,))
        solution = solver.solve_layer(search)
        within = [point_of(problem, None, solution.phy2log_P, solution.solver)]
    fewest = min(within, key=lambda point: (round(point.score.paid_sends, DIGITS), point.score.expected_imbalance))
    fewest = replace(fewest, score=problem.score(fewest.phy2log_P))
    status = "limit" if solutions[own].status == "limit" else "feasible"
    chosen = _pick(fewest, problem, layer_id, status, solutions[own].bound)
    return LayerWeights(picks=tuple(picks), chosen=chosen)


def _pick(point: Point, problem: LayerProblem, layer_id: int, status: str, bound: float | None) -> Pick:
    answer = Answer(layer_id=layer_id, problem=problem, points=[point], status=status, bound=bound)
    return Pick(point=point, report=answer.report(point))


def _best(points: Sequence[Point], weight: float) -> Point:
    """The first of the best, with the objective that the weight gives."""

    def priced(point: Point) -> Point:
        objective = round(point.score.paid_sends + weight * point.score.expected_imbalance, DIGITS)
        return replace(point, score=replace(point.score, objective=objective))

    return reduce(lambda one, other: other if other.score.better_than(one.score) else one, map(priced, points))


def _part_of(deadline: float | None, parts: int) -> float | None:
    """The end of the first of so many equal parts of the time that is left."""
    if deadline is None:
        return None
    now = time.monotonic()
    return now + max(deadline - now, 0.0) / parts
