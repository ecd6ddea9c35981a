"""Simulated annealing of slot contents on the exact, deduplicated objective with balance inside it.

Several starts (linear, eplb, spectral, random) share the proposed moves; the best map under `LayerProblem.score` wins.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from placement.problem import LayerProblem, LayerSolution
from placement.solvers.anneal_common import balance, incidence
from placement.solvers.anneal_single import anneal_single
from placement.solvers.eplb import Eplb
from placement.solvers.linear import linear_map
from placement.solvers.spectral import spectral_map

MOVES_PER_SLOT = 32_000
HOT, COLD = 0.01, 1e-4
SEGMENTS = 4


class Anneal:
    name = "anneal"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        inc, bal = incidence(problem), balance(problem)
        starts = list(_starts(problem))
        moves = problem.options.work_limit or default_moves(problem)
        per_segment = max(moves // (len(starts) * SEGMENTS), 1)
        temperatures = np.geomspace(HOT, COLD, SEGMENTS + 1)
        best, best_score = None, None
        stopped = False
        for number, start in enumerate(starts):
            row = start.copy()
            for segment in range(SEGMENTS):
                stopped = stopped or problem.out_of_time()
                if stopped:
                    break
                seed = np.uint64((problem.seed + 0x9E3779B97F4A7C15 * (number * SEGMENTS + segment + 1)) % 2**64)
                hot, cold = float(temperatures[segment]), float(temperatures[segment + 1])
                anneal_single(row, inc, bal, hot, cold, per_segment, seed)
            score = problem.score(row)
            if best_score is None or score.better_than(best_score):
                best, best_score = row, score
        assert best is not None
        return LayerSolution(phy2log_P=best, status="limit" if stopped else "feasible")


def default_moves(problem: LayerProblem) -> int:
    return MOVES_PER_SLOT * problem.cluster.num_slots


def _starts(problem: LayerProblem) -> Iterator[npt.NDArray[np.int32]]:
    cluster = problem.cluster
    yield linear_map(problem.num_experts, cluster.num_slots)
    yield Eplb().solve_layer(problem).phy2log_P
    yield spectral_map(problem.coact_EE, problem.load_E, cluster)
    rng = np.random.default_rng(problem.seed)
    yield rng.permutation(problem.num_experts).astype(np.int32)
