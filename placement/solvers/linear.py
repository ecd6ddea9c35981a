"""Contiguous blocks: what an engine does when it is told nothing (vLLM `expert_placement_strategy="linear"`)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.solvers.problem import LayerProblem, LayerSolution


def linear_map(num_experts: int, num_slots: int) -> npt.NDArray[np.int32]:
    """[0 .. E-1] followed by [i % E] for the redundant slots, as vLLM and SGLang (`trivial`) start."""
    return (np.arange(num_slots) % num_experts).astype(np.int32)


class Linear:
    name = "linear"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        row = linear_map(problem.num_experts, problem.cluster.num_slots)
        return LayerSolution(solver=self.name, phy2log_P=problem.cluster.from_engine(row))
