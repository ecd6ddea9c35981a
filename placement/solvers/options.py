"""How to solve: what users may ask for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.core.choices import BALANCE_WEIGHT, BOUNDS, BUSY_SHARE, OBJECTIVES, REPLICA_CHOICE, TRANSPORT
from placement.core.cluster import Cluster
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.step_time import balance_in_sends
from placement.cost.transports import TRANSPORTS
from placement.errors import OptionError
from placement.exporters.engines import rules_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to solve. `work_limit` keeps answers reproducible; `time_limit_s` does not.

    Attributes:
        solver: A registered name; `auto` is never worse than linear or eplb on the training objective.
        objective: `locality`: sends + balance_weight * imbalance; `balance`: the expected imbalance alone;
            `time`: the modelled step time, that is `locality` at the price that the cluster's speeds give.
        transport: What the engine sends, see `placement/cost/transports/`; empty: as `engine` does, else `node`.
        balance_weight: Price of imbalance: what one unit of expected rank imbalance (max/mean) costs in sends per
            token.
        busy_share: Share of the sends, 0 to 1 in thousandths, that counts as if every node got as many as the busiest
            does, where a node or rank gets one copy of a token; see `LayerProblem.busy_share`.
        max_imbalance: Hard cap on the rank imbalance of the training loads in every layer; None: only the price counts.
        max_node_imbalance: Hard cap on the imbalance of nodes.
        replica_choice: How the engine picks the replica that serves an assignment; empty: as `engine` does, else
            `min-nodes`.
        engine: The engine that the map is for, see `placement/exporters/engines.py`; None: none in particular.
        bound: `quick` (eigenvalues), `tight` (Lagrangian decomposition: seconds a layer) or `none`.
        seed: Seed of everything random.
        work_limit: Moves that a search proposes per layer; None: by the size of the layer.
        time_limit_s: Wall seconds for the whole solve; layers share it evenly.
        max_moves: Slots whose expert may change from the current map's, all layers together; None: any number.
        max_moves_per_layer: Slots whose expert may change in each layer; None: any number.
    """

    solver: str = "auto"
    objective: str = "locality"
    transport: str = ""
    balance_weight: float = BALANCE_WEIGHT
    busy_share: float = BUSY_SHARE
    max_imbalance: float | None = None
    max_node_imbalance: float | None = None
    replica_choice: str = ""
    engine: str | None = None
    bound: str = "quick"
    seed: int = 0
    work_limit: int | None = None
    time_limit_s: float | None = None
    max_moves: int | None = None
    max_moves_per_layer: int | None = None

    def __post_init__(self) -> None:
        choice, transport = (REPLICA_CHOICE, TRANSPORT) if self.engine is None else rules_of(self.engine)
        object.__setattr__(self, "replica_choice", self.replica_choice or choice)
        object.__setattr__(self, "transport", self.transport or transport)
        if not 0 <= self.balance_weight <= 1e6:
            raise OptionError(f"balance_weight={self.balance_weight} must be from 0 to 1e6")
        if not (0 <= self.busy_share <= 1 and self.busy_share == round(self.busy_share, 3)):
            raise OptionError(f"busy_share={self.busy_share} must be from 0 to 1, with at most three decimals")
        for name, cap, over in (
            ("max_imbalance", self.max_imbalance, "GPUs"),
            ("max_node_imbalance", self.max_node_imbalance, "nodes"),
        ):
            if cap is not None and not (np.isfinite(cap) and cap >= 1):
                raise OptionError(f"{name}={cap} must be 1 or more: it is max/mean over {over}")
        if self.work_limit is not None and not 1 <= self.work_limit < 2**63:
            raise OptionError(f"work_limit={str(self.work_limit)[:24]} must be from 1 to 2^63 - 1 moves")
        if self.time_limit_s is not None and not self.time_limit_s > 0:
            raise OptionError(f"time_limit={self.time_limit_s} must be more than 0 seconds")
        for name, most in (("max_moves", self.max_moves), ("max_moves_per_layer", self.max_moves_per_layer)):
            if most is not None and not 0 <= most < 2**63:
                raise OptionError(f"{name}={str(most)[:24]} must be from 0 to 2^63 - 1 slots")
        if not 0 <= self.seed < 2**63:
            raise OptionError(f"seed={self.seed} must be from 0 to 2^63 - 1")
        if self.bound not in BOUNDS:
            raise OptionError(f"bound={self.bound!r} is unknown; choose one of {', '.join(BOUNDS)}")
        if self.objective not in OBJECTIVES:
            raise OptionError(f"objective={self.objective!r} is unknown; choose one of {', '.join(OBJECTIVES)}")
        TRANSPORTS.check(self.transport)
        REPLICA_CHOICES.check(self.replica_choice)

    @property
    def caps(self) -> str:
        """The caps that are set, in words for messages."""
        caps = {"max_imbalance": self.max_imbalance, "max_node_imbalance": self.max_node_imbalance}
        return " and ".join(f"{name}={cap}" for name, cap in caps.items() if cap is not None)

    @property
    def moves_limited(self) -> bool:
        """True if the answer has to stay near the current map."""
        return self.max_moves is not None or self.max_moves_per_layer is not None

    @property
    def sends_count(self) -> bool:
        """False where balance is all that a placement is judged by."""
        return self.objective != "balance" and not TRANSPORTS.make(self.transport).everywhere

    def prices(self, cluster: Cluster, assignments: float) -> tuple[float, float]:
        """What one send per token costs, 0 if balance is all that counts, and what one unit of imbalance does.

        assignments: experts that a token visits, in the mean.
        """
        if not self.sends_count:
            return 0.0, 1.0
        return 1.0, balance_in_sends(cluster, assignments) if self.objective == "time" else float(self.balance_weight)
