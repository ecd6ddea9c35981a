"""What `advise` answers; how each answer is judged is a property beside its figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from placement.analysis.advise.capacity_factor import CapacityFactors
from placement.analysis.advise.decay import Decay
from placement.analysis.advise.map_cost import EPLB, LINEAR, LITTLE, MUCH, SOLVED, Figures, amount
from placement.analysis.advise.phases import Phases
from placement.analysis.advise.redundancy import SLOT_PRICE, Redundancy
from placement.analysis.advise.steps import Steps
from placement.analysis.advise.worth_grouping import Grouping
from placement.core.cluster import SIZES, Cluster
from placement.core.model import Model
from placement.documents.parts import ProvenancePart
from placement.solvers.options import Options

SCHEMA = "expert-advice/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Worth:
    """maps: `linear`, `eplb` and `solved` on the requests that were measured."""

    maps: dict[str, Figures]

    @property
    def over_linear(self) -> float:
        """Share of the modelled step (of counts: of the imbalance) that the solved map saves."""
        return self.maps[SOLVED].gain_over(self.maps[LINEAR])

    @property
    def over_eplb(self) -> float:
        return self.maps[SOLVED].gain_over(self.maps[EPLB])

    @property
    def eplb_over_linear(self) -> float:
        """What balancing by loads alone brings."""
        return self.maps[EPLB].gain_over(self.maps[LINEAR])

    @property
    def verdict(self) -> str:
        """`hardly`, `some` or `much` to gain over experts in order of their ids."""
        return amount(self.over_linear)


@dataclass(frozen=True, slots=True, kw_only=True)
class Carried:
    """A transport: maps as in `Worth`, `solved` for it; `fixed` where no map changes what it sends."""

    transport: str
    fixed: bool
    maps: dict[str, Figures]

    @property
    def saved(self) -> float | None:
        """Share of the bytes of `linear` that the solved map saves."""
        before, after = self.maps[LINEAR].bytes_per_token, self.maps[SOLVED].bytes_per_token
        return None if not before or after is None else 1 - after / before


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """The answers, each None where the input does not allow it; `absent` then says why, by the answer's name.

    default_sizes the cluster's bytes and speeds are the defaults, which fit DeepSeek-V3 on 400 Gbit/s

    Attributes:
        measured_on: `held-out` or `training`: what all but capacity is measured on.
    """

    model: Model
    cluster: Cluster
    options: Options
    holdout: float
    num_tokens: int
    num_requests: int
    input_hash: str
    measured_on: str
    worth: Worth
    redundancy: Redundancy
    capacity: CapacityFactors
    transports: tuple[Carried, ...] | None
    phases: Phases | None
    grouping: Grouping | None
    steps: Steps | None
    drift: tuple[Decay, ...]
    absent: dict[str, str]

    @property
    def default_sizes(self) -> bool:
        """True if the cluster's bytes and speeds are the defaults, which fit DeepSeek-V3 on 400 Gbit/s."""
        mine, plain = self.cluster, Cluster.of(self.cluster)
        return all(getattr(mine, name) == getattr(plain, name) for name in SIZES)

    def document(self) -> dict[str, Any]:
        """Plain values for JSON, schema `expert-advice/1`."""
        worth, drift = self.worth, self.drift
        carried = self.transports
        return {
            "schema": SCHEMA,
            "model": asdict(self.model),
            "num_tokens": self.num_tokens,
            "num_requests": self.num_requests,
            "measured_on": self.measured_on,
            "rules": {"little": LITTLE, "much": MUCH, "slot_price": SLOT_PRICE},
            "worth": asdict(worth)
            | {
                "verdict": worth.verdict,
                "over_linear": round(worth.over_linear, 6),
                "over_eplb": round(worth.over_eplb, 6),
                "eplb_over_linear": round(worth.eplb_over_linear, 6),
            },
            "transports": None
            if carried is None
            else [asdict(one) | {"saved": None if one.saved is None else round(one.saved, 6)} for one in carried],
            "redundancy": asdict(self.redundancy) | {"recommended": self.redundancy.recommended.redundant},
            "phases": None if self.phases is None else asdict(self.phases) | {"verdict": self.phases.verdict},
            "grouping": None
            if self.grouping is None
            else asdict(self.grouping) | {"verdict": self.grouping.verdict, "gain": round(self.grouping.gain, 6)},
            "steps": None if self.steps is None else self.steps.document(),
            "capacity": asdict(self.capacity),
            "drift": [one.document() for one in drift],
            "absent": self.absent,
            "provenance": ProvenancePart.of(
                asdict(self.options) | {"holdout": self.holdout}, self.cluster, self.input_hash
            ).document(),
        }
