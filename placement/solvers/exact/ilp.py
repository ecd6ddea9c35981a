"""Proven optima of small layers, and proven bounds: the exact objective as an integer program (OR-tools CP-SAT)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
from ortools.sat.python import cp_model

from placement.cost.transport import is_plain
from placement.errors import InfeasibleError
from placement.solvers.base import HOMES_KNOWN, PROVEN, no_map_found
from placement.solvers.eplb import Eplb
from placement.solvers.exact.ilp_model import Program, build, num_terms
from placement.solvers.graph import Graph
from placement.solvers.linear import Linear
from placement.solvers.problem import LayerProblem, LayerSolution, Score
from placement.solvers.prove import objective_bound
from placement.solvers.spectral import spectral_map

MAX_TERMS = 400_000
# of `work_limit`, for one deterministic second of CP-SAT: annealing proposes about as many
MOVES_PER_SECOND = 1_000_000
DEFAULT_SECONDS = 30.0  # deterministic seconds of CP-SAT where no work limit is set
BOUND_STEPS = 100

Found = tuple[npt.NDArray[np.int32], Score]


class Ilp:
    """Never worse than linear, eplb, graph and spectral, which it starts from.

    One worker and CP-SAT's deterministic time keep answers reproducible; a deadline does not. `bound` holds for every
    map and every replica choice. Optima are exact up to PROVEN.
    """

    name = "ilp"

    def __init__(self, start: npt.NDArray[np.int32] | None = None) -> None:
        """`start` is one more map to start from."""
        self.start = start

    def unsupported(self, problem: LayerProblem) -> str | None:
        if problem.home_U is not None:
            return HOMES_KNOWN
        if problem.send_price and not is_plain(problem.cluster, problem.options.transport):
            return "its integer program knows one copy a remote node, over links that are all alike"
        terms = num_terms(problem)
        if terms <= MAX_TERMS:
            return None
        return (
            f"{len(problem.sets_UK)} distinct top-{problem.top_k} sets on {problem.cluster.num_nodes} nodes make an "
            f"integer program of {terms} terms; {MAX_TERMS} are allowed"
        )

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        """The best map that was found, with a bound.

        Raises:
            InfeasibleError: no map meets the caps, and that is proven.
            LimitError: no map within the caps was found in time.
        """
        best = _start(problem, self.start)
        bound = objective_bound(problem, None if problem.out_of_time() else BOUND_STEPS)
        finished = False
        if not problem.out_of_time() and not _proven(best[1], bound):
            program = build(problem, best[0])
            best, better_bound, finished = _search(problem, program, best)
            bound = max(bound, better_bound)
        if not best[1].feasible:
            raise no_map_found(problem, best[1], "raise it, --work-limit or --time-limit")
        status = "limit"
        if _proven(best[1], bound) or (finished and not problem.num_redundant):
            status = "optimal"
        elif finished:
            status = "feasible"  # the program is solved, but with redundant experts a relaxation
        return LayerSolution(solver=self.name, phy2log_P=best[0], status=status, bound=min(bound, best[1].objective))


def _proven(score: Score, bound: float) -> bool:
    return score.feasible and score.objective - bound <= PROVEN


def _start(problem: LayerProblem, given: npt.NDArray[np.int32] | None) -> Found:
    rows = [] if given is None else [given]
    rows += [solver.solve_layer(problem).phy2log_P for solver in (Linear(), Eplb(), Graph())]
    if not problem.num_redundant:
        rows.append(spectral_map(problem.coact_EE, problem.load_E, problem.cluster))
    best: Found | None = None
    for row in rows:
        best = _better(problem, row, best)
    assert best is not None
    return best


def _better(problem: LayerProblem, row: npt.NDArray[np.int32], best: Found | None) -> Found:
    score = problem.score(row)
    return (row, score) if best is None or score.better_than(best[1]) else best


def _search(problem: LayerProblem, program: Program, best: Found) -> tuple[Found, float, bool]:
    """(best map, bound, whether the program was solved to the end)."""
    solver = cp_model.CpSolver()
    work = problem.options.work_limit
    solver.parameters.num_workers = 1
    solver.parameters.random_seed = problem.seed % (2**31 - 1)
    solver.parameters.max_deterministic_time = DEFAULT_SECONDS if work is None else work / MOVES_PER_SECOND
    if problem.deadline is not None:
        solver.parameters.max_time_in_seconds = max(problem.deadline - time.monotonic(), 1e-3)
    watcher = _Watcher(problem, program, best)
    status = solver.solve(program.model, watcher)
    if status == cp_model.INFEASIBLE:
        raise InfeasibleError(
            f"{problem.options.caps} is proven impossible for layer {problem.index}: no map on "
            f"{problem.cluster.num_ranks} GPUs meets it; raise it or add --redundant-experts"
        )
    if status == cp_model.MODEL_INVALID:
        raise RuntimeError(f"CP-SAT refuses the program: {program.model.validate()}")
    bound = float(solver.best_objective_bound) * program.unit
    return watcher.best, bound, status == cp_model.OPTIMAL


class _Watcher(cp_model.CpSolverSolutionCallback):
    """Judges every solution by the true score: with redundant experts the program's own is only a lower bound."""

    def __init__(self, problem: LayerProblem, program: Program, best: Found) -> None:
        super().__init__()
        self.problem, self.program, self.best = problem, program, best

    def on_solution_callback(self) -> None:
        held: list[list[int]] = [[] for _ in range(self.problem.cluster.num_ranks)]
        rows: list[list[Any]] = self.program.x_EG
        for e, row in enumerate(rows):
            for g, x in enumerate(row):
                if self.boolean_value(x):
                    held[g].append(e)
        self.best = _better(self.problem, np.array(held, dtype=np.int32).ravel(), self.best)
