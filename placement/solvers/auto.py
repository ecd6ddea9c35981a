"""The default: the best that the other solvers find, never worse than what engines do without us, with a bound.

Annealing everywhere, and `balance` where nothing else counts; on small layers the optimum is then proven or mended: by
going through all maps where that is possible, else by matching or the integer program. A tight bound leads to one more
map, which is annealed a little.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from placement.errors import LimitError
from placement.solvers.annealing.anneal import Anneal
from placement.solvers.balancing.balance_solver import Balance
from placement.solvers.base import PROVEN, Solver
from placement.solvers.eplb import Eplb
from placement.solvers.exact.exhaustive import Exhaustive
from placement.solvers.linear import Linear
from placement.solvers.matching import Matching
from placement.solvers.problem import LayerProblem, LayerSolution
from placement.solvers.prove import prove

EXACT_EXPERTS = 12
EXACT_WORK = 2_000_000


class Auto:
    name = "auto"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        found = [solver.solve_layer(problem) for solver in _solvers(problem)]
        given = [LayerSolution(solver="given", phy2log_P=row) for row in problem.starts]
        best = _best(problem, found + given)
        unbounded = problem.options.bound == "none" or problem.out_of_time()
        bound, start = (None, None) if unbounded else prove(problem)
        if start is not None:
            best = _best(problem, [best, Anneal().polish(problem, start)])
        if bound is not None and not problem.num_redundant:
            exact = self._exact(problem, best)
            best = _best(problem, [best, exact])
            bound = max(bound, exact.bound or bound)
        score = problem.score(best.phy2log_P)
        if bound is not None and best.status == "optimal":
            bound = max(bound, score.objective)
        proven = bound is not None and score.feasible and score.objective - bound <= PROVEN
        return replace(best, status="optimal" if proven else best.status, bound=bound)

    def _exact(self, problem: LayerProblem, best: LayerSolution) -> LayerSolution:
        """What the first solver that takes the layer proves, or `best`."""
        work = min(problem.options.work_limit or EXACT_WORK, EXACT_WORK)
        limited = replace(problem, options=replace(problem.options, work_limit=work))
        for solver in _provers(problem, best):
            if solver.unsupported(limited) is None:
                with suppress(LimitError):
                    return solver.solve_layer(limited)
                break
        return best


def _provers(problem: LayerProblem, best: LayerSolution) -> Iterator[Solver]:
    yield Exhaustive(start=best.phy2log_P)
    yield Matching()
    if problem.num_experts <= EXACT_EXPERTS:
        from placement.solvers.exact.ilp import Ilp  # OR-tools is loaded only for small layers

        yield Ilp(start=best.phy2log_P)


def _solvers(problem: LayerProblem) -> list[Solver]:
    """Where balance alone counts, its own solver is quicker and better; with copies sends still decide who serves."""
    baselines: list[Solver] = [Linear(), Eplb()]
    options = problem.options
    if problem.send_price == 0:
        searched = len(problem.sets_UK) > 0 and (problem.num_redundant > 0 or options.max_node_imbalance is not None)
        return [Balance(), *([Anneal()] if searched else []), *baselines]
    return [Anneal(), *([Balance()] if options.max_imbalance is not None else []), *baselines]


def _best(problem: LayerProblem, solutions: list[LayerSolution]) -> LayerSolution:
    """The first of the best: later ones must be strictly better."""
    best, best_score = solutions[0], problem.score(solutions[0].phy2log_P)
    for other in solutions[1:]:
        score = problem.score(other.phy2log_P)
        if score.better_than(best_score):
            best, best_score = other, score
    return best
