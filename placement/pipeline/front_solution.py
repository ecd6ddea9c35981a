"""The placements of the front."""

from __future__ import annotations

from dataclasses import dataclass

from placement.pipeline.solution import Solution

CAPPED_FILE = "capped.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class FrontPoint:
    """One placement of the front.

    weight    the price of imbalance that gave it; None: it was picked layer by layer to keep `max_imbalance`
    solution  as if it had been solved for alone; bounds has only the chosen one
    sends     on the training requests, mean over layers
    paid_sends, expected_imbalance  what was traded, the sends with the busy share: the same means
    """

    weight: float | None
    solution: Solution
    sends: float
    paid_sends: float
    expected_imbalance: float

    @property
    def file(self) -> str:
        """Name of its placement file."""
        return CAPPED_FILE if self.weight is None else f"weight-{self.weight!r}.json".replace(".0.json", ".json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Front:
    """Placements by ascending weight, none of which dominates another; one picked to keep a cap comes last."""

    points: tuple[FrontPoint, ...]
    chosen: FrontPoint

    @property
    def solution(self) -> Solution:
        """The chosen one."""
        return self.chosen.solution
