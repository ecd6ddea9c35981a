"""What maps cost on each part of a trace: what happens when traffic shifts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.choices import CAPTURES
from placement.core.cluster import Cluster
from placement.cost.evaluation import Evaluation
from placement.solvers.options import Options

Answers = tuple[dict[str, Evaluation], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartFigures:
    """Every map on every part.

    by, names, left_out  the parting, see `placement.traces.parts.Parts`
    train      for each part, map name -> evaluation on the requests that the solver saw
    held_out   the same on those it did not see; a part without such requests has {}; () if none were held out
    cluster, options  whose prices the objective has
    objective_W  name -> float64 [W], what a robust solve minimized the worst of; {} of others
    weight_W   share of each part in the traffic, where captures were weighed; (): all alike
    bound      no map has a lower worst part in `objective_W`; None: unknown
    """

    by: str
    names: tuple[str, ...]
    left_out: tuple[str, ...]
    train: Answers
    held_out: Answers
    cluster: Cluster
    options: Options
    objective_W: Mapping[str, npt.NDArray[np.float64]]
    weight_W: tuple[float, ...] = ()
    bound: float | None = None

    @property
    def noun(self) -> str:
        """What a part is called."""
        return {"domain": "domain", "category": "category", "phase": "phase", CAPTURES: "capture"}.get(
            self.by, "window"
        )

    def shown(self) -> tuple[str, Answers]:
        """Held-out figures where every part has some, else those of training; with their name in words."""
        if self.held_out and all(self.held_out):
            return "held-out", self.held_out
        return "training", self.train

    def mean(self, value_WM: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Mean over parts, by weight."""
        return np.asarray(np.average(value_WM, axis=0, weights=self.weight_W or None))

    def cost(self, evaluation: Evaluation) -> float:
        """Sends and measured imbalance at the prices of the objective, mean over layers."""
        send_price, balance_price_L = self._prices(evaluation)
        sends = send_price * float(evaluation.sends_L.mean()) if send_price else 0.0
        return sends + float((balance_price_L * evaluation.rank_imbalance_L()).mean())

    def prices(self) -> tuple[float, float]:
        """What one send costs and one unit of imbalance, mean over layers: they differ where sizes of sets do."""
        send_price, balance_price_L = self._prices(next(one for answer in self.train for one in answer.values()))
        return send_price, float(balance_price_L.mean())

    def _prices(self, evaluation: Evaluation) -> tuple[float, npt.NDArray[np.float64]]:
        price_L2 = [self.options.prices(self.cluster, visited) for visited in evaluation.assignments_L.tolist()]
        return price_L2[0][0], np.array([balance for _, balance in price_L2])
