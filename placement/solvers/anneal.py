"""Simulated annealing of slot contents on the exact, deduplicated objective with balance inside it.

Every start is quenched (annealed from a low temperature), then the best of them annealed in full; the best map seen
under `LayerProblem.score` wins. Without redundant experts the starts are linear, eplb, spectral and random. With them:
eplb, and a locality solution (annealed with the redundant slots empty, then filled with copies of the hottest experts).
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import numpy.typing as npt

from placement.mixing import GOLDEN
from placement.problem import LayerProblem, LayerSolution
from placement.solvers.anneal_common import Balance, Incidence, balance, incidence
from placement.solvers.anneal_replicas import anneal_replicas
from placement.solvers.anneal_single import anneal_single
from placement.solvers.eplb import Eplb
from placement.solvers.linear import linear_map
from placement.solvers.moves import separate_copies
from placement.solvers.spectral import spectral_map

Row = npt.NDArray[np.int32]

MOVES, REPLICA_MOVES = 600_000, 150_000
QUENCH_SHARE = 0.25
# temperatures in units of K / E sends per token: about what one average expert's move changes
HOT, QUENCH, COLD = 0.08, 0.02, 0.0008
SEGMENTS = 4


class Anneal:
    name = "anneal"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        search = _Search(problem)
        row = search.best_row()
        return LayerSolution(solver=self.name, phy2log_P=row, status="limit" if search.stopped else "feasible")


class _Search:
    """One layer's annealing runs; `stopped` tells whether the deadline cut them."""

    def __init__(self, problem: LayerProblem) -> None:
        self.problem = problem
        self.stopped = False
        self.runs = 0

    def best_row(self) -> Row:
        problem, slots = self.problem, self.problem.cluster.num_slots
        # slots beyond one for each expert hold experts of their own here, in no set and without load
        inc, bal = incidence(problem, slots), balance(problem, slots)
        spectral = spectral_map(*self._padded(), problem.cluster)
        if problem.num_redundant == 0:
            moves = problem.options.work_limit or MOVES
            shuffled = np.random.default_rng(problem.seed).permutation(slots).astype(np.int32)
            starts = [
                spectral,
                Eplb().solve_layer(problem).phy2log_P,
                linear_map(slots, slots),
                shuffled,
                *problem.starts,
            ]
            return self._quench_and_anneal(starts, inc, bal, moves, replicas=False)
        # the more copies there are, the dearer a move is
        moves = problem.options.work_limit or int(REPLICA_MOVES * (problem.num_experts / slots) ** 3)
        local = self._fill(self._anneal(spectral, inc, bal, HOT, moves, replicas=False))
        starts = [Eplb().solve_layer(problem).phy2log_P, local, *problem.starts]
        inc, bal = incidence(problem, problem.num_experts), balance(problem, problem.num_experts)
        return self._quench_and_anneal(starts, inc, bal, moves, replicas=True)

    def _quench_and_anneal(self, starts: list[Row], inc: Incidence, bal: Balance, moves: int, *, replicas: bool) -> Row:
        each = int(QUENCH_SHARE * moves) // len(starts)
        quenched = [self._anneal(start, inc, bal, QUENCH, each, replicas=replicas) for start in starts]
        best, best_score = quenched[0], self.problem.score(quenched[0])
        for row in quenched[1:]:
            score = self.problem.score(row)
            if score.better_than(best_score):
                best, best_score = row, score
        final = self._anneal(best, inc, bal, HOT, moves - each * len(starts), replicas=replicas)
        return final if self.problem.score(final).better_than(best_score) else best

    def _anneal(self, start: Row, inc: Incidence, bal: Balance, hot: float, moves: int, *, replicas: bool) -> Row:
        row = start.copy()
        scale = self.problem.top_k / self.problem.num_experts
        temperatures = np.geomspace(hot * scale, COLD * scale, SEGMENTS + 1)
        kernel = anneal_replicas if replicas else anneal_single
        for begin, end in pairwise(temperatures):
            self.stopped = self.stopped or self.problem.out_of_time()
            if self.stopped:
                break
            self.runs += 1
            seed = np.uint64((self.problem.seed + int(GOLDEN) * self.runs) % 2**64)
            kernel(row, inc, bal, float(begin), float(end), max(moves // SEGMENTS, 1), seed)
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
