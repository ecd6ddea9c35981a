"""The maps that a layer may get, by how many slots move; which of them it gets is decided over all layers."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace

from placement.bounds.layer_bound import smallest_imbalance
from placement.core.placement import wasted_P
from placement.errors import InfeasibleError, LimitError, OptionError
from placement.pipeline.move_front import CURRENT, LayerInUse, Point, front, layer_front, point_of
from placement.solvers import get_solver
from placement.solvers.moves import fill_wasted
from placement.solvers.problem import CAP_ROUNDING, LayerProblem, Score

log = logging.getLogger("placement")

FROM_CURRENT = ("auto", "anneal")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """How one layer was solved; `bound` and `gap` are None where no bound was computed.

    gap = (objective - bound) / objective
    """

    layer_id: int
    solver: str
    status: str
    objective: float
    bound: float | None
    gap: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What was found for a layer: `points` by ascending moves, each better than those before it."""

    layer_id: int
    problem: LayerProblem
    points: list[Point]
    status: str
    bound: float | None

    def report(self, point: Point) -> LayerReport:
        """How the layer fares with one of its points. Raises InfeasibleError or LimitError if that breaks a cap."""
        score = point.score
        _check_cap(self.problem, score, self.layer_id)
        bound, gap = self.bound, None
        if bound is not None:
            gap = round(max(score.objective - bound, 0.0) / score.objective, 6) if score.objective else 0.0
            bound = round(bound, 9)
        log.debug("layer %d: %s, objective %.6f", self.layer_id, self.status, score.objective)
        proves_nothing = self.status == "optimal" and point is not self.points[-1]
        return LayerReport(
            layer_id=self.layer_id,
            solver=point.solver,
            status="feasible" if proves_nothing else self.status,
            objective=round(score.objective, 9),
            bound=bound,
            gap=gap,
        )


def solve_layer(problem: LayerProblem, layer_id: int, now: LayerInUse | None) -> Answer:
    """The best map that the solver of the options finds; with a current map also better ones that move less.

    Raises OptionError if the solver cannot take the problem, InfeasibleError or LimitError if no map keeps the caps.
    """
    options = problem.options
    solver = get_solver(options.solver)
    reason = solver.unsupported(problem)
    if reason is not None:
        raise OptionError(f"solver={options.solver!r} cannot take layer {layer_id}: {reason}; use --solver auto")
    search = problem
    if now is not None:
        filled_P = fill_wasted(now.phy2log_P, problem.cluster.num_ranks, problem.load_E)
        search = replace(problem, starts=(*problem.starts, filled_P))
    if options.moves_limited and problem.deadline is not None:
        begun = time.monotonic()  # half of the time is left for maps that move less
        search = replace(search, deadline=begun + (problem.deadline - begun) / 2)
    solution = solver.solve_layer(search)
    best = point_of(problem, now, solution.phy2log_P, solution.solver)
    if now is None or options.solver not in FROM_CURRENT:
        points = [best]
    elif options.moves_limited:
        points = layer_front(problem, now, best)
    elif wasted_P(now.phy2log_P, problem.cluster.num_ranks).any():
        points = [best]  # of what is no answer of ours
    else:
        points = front([point_of(problem, now, now.phy2log_P, CURRENT), best])
    status = "limit" if options.moves_limited and problem.out_of_time() else solution.status
    answer = Answer(layer_id=layer_id, problem=problem, points=points, status=status, bound=solution.bound)
    if not any(point.score.feasible for point in points):
        answer.report(points[-1])
    return answer


def _check_cap(problem: LayerProblem, score: Score, layer_id: int) -> None:
    if score.feasible:
        return
    options, cap = problem.options, problem.options.max_imbalance
    near = " near the current map" if options.moves_limited else ""
    least = smallest_imbalance(problem.load_E, problem.cluster)
    if cap is not None and least > cap:
        raise InfeasibleError(
            f"layer {layer_id}: max_imbalance={cap} cannot be met: its hottest experts alone make {least:.4f}; allow "
            f"{least:.4f} or more, or add --redundant-experts"
        )
    broken, raised = f"{score.imbalance:.6f}", "--max-imbalance"
    if cap is None or score.imbalance <= cap + CAP_ROUNDING:
        broken, raised = f"{score.node_imbalance:.6f} over nodes", "the second number of --max-imbalance"
    raise LimitError(
        f"layer {layer_id}: no map with {options.caps} was found{near}; the best has {broken}; raise {raised} or "
        f"{'--max-moves' if near else '--work-limit'}, or add --redundant-experts"
    )
