"""The protocol of a solver."""

from __future__ import annotations

from typing import Protocol

from placement.solvers.problem import LayerProblem, LayerSolution

HOMES_KNOWN = "it counts sends from homes that are uniformly random, and these are known"


class Solver(Protocol):
    """Answers one layer at a time; keeps no state between calls, so layers may be solved side by side."""

    name: str

    def unsupported(self, problem: LayerProblem) -> str | None:
        """Why this solver cannot take the problem, or None if it can."""

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        """A valid map of the layer: every expert has a slot, none twice on a rank."""
