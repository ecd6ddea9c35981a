"""Simulated annealing of slot contents on the exact, deduplicated objective with balance inside it.

Several starts share the proposed moves; the best map under `LayerProblem.score` wins. Without redundant experts they are
linear, eplb, spectral and random. With them: eplb, and a locality solution (annealed with the redundant slots empty,
then filled with copies of the hottest experts).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.problem import LayerProblem, LayerSolution
from placement.solvers.anneal_common import Balance, Incidence, balance, incidence
from placement.solvers.anneal_replicas import anneal_replicas
from placement.solvers.anneal_single import anneal_single
from placement.solvers.eplb import Eplb
from placement.solvers.linear import linear_map
from placement.solvers.moves import separate_copies
from placement.solvers.spectral import spectral_map

Row = npt.NDArray[np.int32]

MOVES_PER_SLOT = 24_000
REPLICA_MOVES_PER_SLOT = 2_500
HOT, COLD = 0.01, 1e-4
SEGMENTS = 4


class Anneal:
    name = "anneal"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        search = _Search(problem)
        best, best_score = None, None
        for row in search.rows():
            score = problem.score(row)
            if best_score is None or score.better_than(best_score):
                best, best_score = row, score
        assert best is not None
        return LayerSolution(phy2log_P=best, status="limit" if search.stopped else "feasible")


class _Search:
    """One layer's annealing runs; `stopped` tells whether the deadline cut them."""

    def __init__(self, problem: LayerProblem) -> None:
        self.problem = problem
        self.stopped = False
        self.runs = 0

    def rows(self) -> list[Row]:
        problem, slots = self.problem, self.problem.cluster.num_slots
        moves = problem.options.work_limit
        # slots beyond one for each expert hold experts of their own here, in no set and without load
        inc, bal = incidence(problem, slots), balance(problem, slots)
        spectral = spectral_map(*self._padded(), problem.cluster)
        if problem.num_redundant == 0:
            rng = np.random.default_rng(problem.seed)
            starts = [
                linear_map(slots, slots),
                Eplb().solve_layer(problem).phy2log_P,
                spectral,
                rng.permutation(slots).astype(np.int32),
            ]
            each = (moves or MOVES_PER_SLOT * slots) // len(starts)
            return [self._anneal(start, inc, bal, each, replicas=False) for start in starts]
        total = moves or REPLICA_MOVES_PER_SLOT * slots
        local = self._fill(self._anneal(spectral, inc, bal, total, replicas=False))
        inc, bal = incidence(problem, problem.num_experts), balance(problem, problem.num_experts)
        starts = [Eplb().solve_layer(problem).phy2log_P, local]
        return [self._anneal(start, inc, bal, total // len(starts), replicas=True) for start in starts]

    def _anneal(self, start: Row, inc: Incidence, bal: Balance, moves: int, *, replicas: bool) -> Row:
        row = start.copy()
        temperatures = np.geomspace(HOT, COLD, SEGMENTS + 1)
        kernel = anneal_replicas if replicas else anneal_single
        for segment in range(SEGMENTS):
            self.stopped = self.stopped or self.problem.out_of_time()
            if self.stopped:
                break
            self.runs += 1
            seed = np.uint64((self.problem.seed + 0x9E3779B97F4A7C15 * self.runs) % 2**64)
            hot, cold = float(temperatures[segment]), float(temperatures[segment + 1])
            kernel(row, inc, bal, hot, cold, max(moves // SEGMENTS, 1), seed)
        return row

    def _padded(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        extra = self.problem.num_redundant
        return np.pad(self.problem.coact_EE, (0, extra)), np.pad(self.problem.load_E, (0, extra))

    def _fill(self, row: Row) -> Row:
        """Replace the empty slots by copies of the experts with the highest load per copy."""
        num_experts, load_E = self.problem.num_experts, self.problem.load_E
        filled = row.copy()
        copies = np.ones(num_experts)
        for p in np.flatnonzero(row >= num_experts):
            hottest = int(np.argmax(np.where(copies < self.problem.cluster.num_ranks, load_E / copies, -1.0)))
            filled[p] = hottest
            copies[hottest] += 1
        return separate_copies(filled, self.problem.cluster, load_E)
