"""What a map costs in the few figures that all answers share, and when a gain is worth its trouble."""

from __future__ import annotations

from dataclasses import dataclass

from placement.cost.evaluation import Evaluation

LITTLE, MUCH = 0.02, 0.10  # shares of the modelled step: hardly a gain below the first, a large one above the second
LINEAR, EPLB, SOLVED = "linear", "eplb", "solved"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of a map on some traffic, as `Evaluation.summary` rounds them; None where counts do not tell.

    sends, bytes_per_token  per token and layer, between nodes, of the transport
    imbalance, worst_imbalance  max / mean over ranks: mean and largest of the layers
    step_us                 modelled time of all MoE layers of a step, `placement.cost.step_time`
    """

    tokens: int
    sends: float | None
    bytes_per_token: float | None
    imbalance: float
    worst_imbalance: float
    step_us: float | None

    @staticmethod
    def of(evaluation: Evaluation) -> Figures:
        summary = evaluation.summary()
        moved = evaluation.bytes_per_token()
        return Figures(
            tokens=evaluation.num_tokens,
            sends=summary["sends_per_token"],
            bytes_per_token=round(moved, 1) if moved == moved else None,
            imbalance=summary["rank_imbalance"]["mean"],
            worst_imbalance=summary["rank_imbalance"]["max"],
            step_us=summary["step_time_us"],
        )

    @property
    def cost(self) -> float:
        """What maps are compared by: the modelled step; of counts, which do not tell it, the imbalance."""
        return self.imbalance if self.step_us is None else self.step_us

    def gain_over(self, other: Figures) -> float:
        """Share of the other's cost that is saved; negative where this one costs more."""
        return 1 - self.cost / other.cost


def amount(gain: float) -> str:
    """`hardly`, `some` or `much`: what a gain is called everywhere."""
    return "hardly" if gain < LITTLE else "some" if gain < MUCH else "much"
