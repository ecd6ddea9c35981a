"""What a solve answers, and its JSON form: the placement file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.migration import MigrationPlan, migration_plan
from placement.core.placement import Placement
from placement.cost.evaluation import Evaluation
from placement.documents.parts import ProvenancePart
from placement.documents.placement import PlacementFile
from placement.errors import OptionError
from placement.pipeline.evidence import Evidence
from placement.pipeline.layer_answer import LayerReport
from placement.pipeline.part_figures import PartFigures
from placement.solvers.options import Options


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A placement, how each layer was solved, and what it costs beside the baselines.

    Attributes:
        result_name: Name of the result in `maps`, `train` and `held_out`: the solver's name, or `robust`.
        maps: A placement by name: the baselines and the result.
        train: An evaluation by name, on the requests that the solver saw.
        held_out: An evaluation by name, on the requests that the solver did not see; empty if none were held out.
        current: The map that was in use, if one was given; `maps` then has the map as `current`, or where its cluster
            had another size the map with the fewest copies as `fewest-copies`.
        lost_ranks: Ranks of the current map whose weights are gone.
        parts: The maps on each part of the traffic: parts of a robust solve, else domains; None: there are none.
        robust: How the traffic was parted for a robust solve; None: the solve was a plain one.
        evidence: What the result rests on; None: not asked for.
    """

    cluster: Cluster
    options: Options
    layers: tuple[LayerReport, ...]
    result_name: str
    maps: dict[str, Placement]
    train: dict[str, Evaluation]
    held_out: dict[str, Evaluation]
    holdout: float
    input_hash: str
    current: Placement | None = None
    lost_ranks: tuple[int, ...] = ()
    parts: PartFigures | None = None
    robust: str | None = None
    evidence: Evidence | None = None
    _known: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def placement(self) -> Placement:
        """The result."""
        return self.maps[self.result_name]

    def migration(self) -> MigrationPlan | None:
        """What has to be copied to get from the current map to the result; computed once."""
        if self.current is not None and "migration" not in self._known:
            self._known["migration"] = migration_plan(
                self.current, self.placement, self.cluster, lost_ranks=self.lost_ranks
            )
        return self._known.get("migration")

    def best_split(self) -> dict[str, npt.NDArray[np.float64]] | None:
        """By train and held_out: the result's rank imbalance of every layer, float64 [L], if the load of each expert
        were split over its slots as well as can be; None where no expert has several. Computed once."""
        model = self.placement.model
        if self.cluster.num_slots == model.num_experts:
            return None
        from placement.cost.load_split import best_imbalance_L  # scipy's programs are loaded only for it

        sides = {"train": self.train, "held_out": self.held_out}
        if "best_split" not in self._known:
            self._known["best_split"] = {
                side: best_imbalance_L(
                    answers[self.result_name].load_LP, self.placement.phy2log_LP, self.cluster, model.num_experts
                )
                for side, answers in sides.items()
                if answers
            }
        return dict(self._known["best_split"])

    def worst_if_balanced(self) -> float:
        """Rank imbalance of the worst part if a map were balanced for every part of `parts`; computed once."""
        if "worst_if_balanced" not in self._known:
            from placement.pipeline.outlook import worst_if_balanced  # its kernels are compiled only for it

            if self.parts is None:
                raise OptionError("the solution has no parts of the traffic; give several captures")
            self._known["worst_if_balanced"] = worst_if_balanced(self.parts, self.result_name, self.placement)
        return float(self._known["worst_if_balanced"])


def solution_document(
    solution: Solution, *, classes: dict[str, Any] | None = None, asked: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The placement file of a solution: `solve -o`, `solve --json` and the service answer this.

    Args:
        solution: what `solve` answered
        classes: what own maps of classes of traffic gain over this one, see `placement.pipeline.by_class`
        asked: what was asked for besides the solution's options
    Returns:
        Plain data of the schema `expert-placement/1`, which `save_placement` writes.
    """
    plan = solution.migration()
    splits = solution.best_split()
    best_split = (
        None
        if splits is None
        else {
            side: {"mean": round(float(imbalance_L.mean()), 6), "max": round(float(imbalance_L.max()), 6)}
            for side, imbalance_L in splits.items()
        }
    )
    options = asdict(solution.options) | {"holdout": solution.holdout, "robust": solution.robust} | dict(asked or {})
    file = PlacementFile.of(
        solution.placement,
        migration=None if plan is None else plan.summary(),
        evaluation={
            "replica_choice": solution.options.replica_choice,
            "transport": solution.options.transport,
            "result": solution.result_name,
            **summaries(solution.train, solution.held_out),
            "best_split": best_split,
            "captures": _captures_document(solution.parts),
        },
        evidence=_evidence_document(solution.evidence),
        robust=_robust_document(solution),
        classes=classes,
        layers=[asdict(layer) for layer in solution.layers],
        provenance=ProvenancePart.of(options, solution.cluster, solution.input_hash),
    )
    return file.document()


def summaries(train: Mapping[str, Evaluation], held_out: Mapping[str, Evaluation]) -> dict[str, Any]:
    """What maps cost on both sides, by name; null where nothing was held out."""
    sides = (("train", train), ("held_out", held_out))
    return {side: {name: one.summary() for name, one in answers.items()} or None for side, answers in sides}


def _evidence_document(evidence: Evidence | None) -> dict[str, Any] | None:
    if evidence is None:
        return None
    twice, error = evidence.twice, evidence.imbalance_error
    return {
        "requests": evidence.requests,
        "more_requests": not evidence.all_profiled,
        "held_out_requests": evidence.held_out_requests,
        "twice_the_requests": None
        if twice is None
        else {
            "sends_per_token": None if twice.sends is None else [round(value, 4) for value in twice.sends],
            "rank_imbalance": [round(value, 4) for value in twice.imbalance],
        },
        "held_out_error": None
        if error is None or evidence.difference_error is None
        else {"rank_imbalance": round(error, 4), "against_reference": round(evidence.difference_error, 4)},
    }


def _robust_document(solution: Solution) -> dict[str, Any] | None:
    figures = solution.parts
    if solution.robust is None or figures is None:
        return None
    return {
        "by": figures.by,
        "objective": {
            name: {"worst": round(float(cost_W.max()), 9), "mean": round(float(cost_W.mean()), 9)}
            for name, cost_W in figures.objective_W.items()
        },
        "parts": [
            {
                "name": name,
                "objective": {m: round(float(cost_W[w]), 9) for m, cost_W in figures.objective_W.items()},
                **summaries(figures.train[w], figures.held_out[w] if figures.held_out else {}),
            }
            for w, name in enumerate(figures.names)
        ],
        "left_out": list(figures.left_out),
        "bound": None if figures.bound is None else round(figures.bound, 9),
    }


def _captures_document(figures: PartFigures | None) -> list[dict[str, Any]] | None:
    if figures is None or not figures.weight_W:
        return None
    return [
        {
            "name": name,
            "weight": round(figures.weight_W[w], 9),
            **summaries(figures.train[w], figures.held_out[w] if figures.held_out else {}),
        }
        for w, name in enumerate(figures.names)
    ]
