"""Expert e on rank e mod G (vLLM `expert_placement_strategy="round_robin"`)."""

from __future__ import annotations

import numpy as np

from placement.solvers.linear import linear_map
from placement.solvers.moves import separate_copies
from placement.solvers.problem import LayerProblem, LayerSolution


class RoundRobin:
    name = "round-robin"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        cluster = problem.cluster
        dealt = linear_map(problem.num_experts, cluster.num_slots).reshape(cluster.slots_per_gpu, cluster.num_ranks)
        row = np.ascontiguousarray(dealt.T).ravel()
        row = separate_copies(cluster.from_engine(row), cluster, problem.load_E)
        return LayerSolution(solver=self.name, phy2log_P=row)
