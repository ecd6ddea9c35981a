"""The protocol of a solver."""

from __future__ import annotations

from typing import Protocol

from placement.errors import LimitError
from placement.solvers.problem import LayerProblem, LayerSolution, Score

PROVEN = 1e-6  # a map whose objective is this close to its bound counts as optimal
HOMES_KNOWN = "it counts sends from homes that are uniformly random, and these are known"


class Solver(Protocol):
    """Answers one layer at a time; keeps no state between calls, so layers may be solved side by side."""

    name: str

    def unsupported(self, problem: LayerProblem) -> str | None:
        """Why this solver cannot take the problem, or None if it can."""

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        """A valid map of the layer: every expert has a slot, none twice on a rank."""


def no_map_found(problem: LayerProblem, best: Score, mend: str) -> LimitError:
    """The error of a search that found no map within the caps.

    Args:
        problem: the layer, whose options have the caps.
        best: score of the map nearest to the caps.
        mend: what to do, for the end of the message.
    """
    return LimitError(
        f"no map with {problem.options.caps} was found; the best has {best.imbalance:.4f} over GPUs and "
        f"{best.node_imbalance:.4f} over nodes; {mend}"
    )
