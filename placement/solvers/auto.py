"""The default: the best that the other solvers find, never worse than what engines do without us."""

from __future__ import annotations

from placement.problem import LayerProblem, LayerSolution
from placement.solvers.anneal import Anneal
from placement.solvers.eplb import Eplb
from placement.solvers.linear import Linear


class Auto:
    name = "auto"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        best = Anneal().solve_layer(problem)
        best_score = problem.score(best.phy2log_P)
        for baseline in (Linear(), Eplb()):
            other = baseline.solve_layer(problem)
            score = problem.score(other.phy2log_P)
            if score.better_than(best_score):
                best, best_score = other, score
        return best
