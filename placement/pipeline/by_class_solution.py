"""Maps for all traffic and for classes of it, and what they cost."""

from __future__ import annotations

from dataclasses import dataclass

from placement.cost.evaluation import Evaluation
from placement.pipeline.part_figures import Answers, PartFigures
from placement.pipeline.solution import Solution

ONE, OWN = "one", "own"  # names of two maps: the one for all, and the class's own


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficClass:
    """A class of traffic and its own map.

    file      a name for its placement file that every file system takes, different for every class
    solution  the result `own` was fitted to the class's training requests and is measured on the class alone, beside
              `one`, `linear` and `eplb`, which were fitted to all traffic
    """

    name: str
    file: str
    solution: Solution


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a map costs on some traffic: means over layers, `cost` at the prices of the objective."""

    tokens: int
    sends: float
    rank_imbalance: float
    cost: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ByClass:
    """solution is of the one map for all traffic; left_out are classes that are too small for a map of their own."""

    by: str
    solution: Solution
    classes: tuple[TrafficClass, ...]
    left_out: tuple[str, ...]

    def figures(self) -> PartFigures:
        """All maps on every class."""
        held_out = tuple(one.solution.held_out for one in self.classes)
        return PartFigures(
            by=self.by,
            names=tuple(one.name for one in self.classes),
            left_out=self.left_out,
            train=tuple(one.solution.train for one in self.classes),
            held_out=held_out if any(held_out) else (),
            cluster=self.solution.cluster,
            options=self.solution.options,
            objective_W={},
        )

    def cost(self, evaluation: Evaluation) -> Cost:
        return Cost(
            tokens=evaluation.num_tokens,
            sends=float(evaluation.sends_L.mean()),
            rank_imbalance=float(evaluation.rank_imbalance_L().mean()),
            cost=self.figures().cost(evaluation),
        )

    def mean(self, answers: Answers, name: str) -> Cost:
        """Of one map over the classes, each weighted by its tokens."""
        costs = [self.cost(answer[name]) for answer in answers if answer]
        tokens = sum(one.tokens for one in costs)
        sends, imbalance, cost = (
            sum(one.tokens * getattr(one, key) for one in costs) / max(tokens, 1)
            for key in ("sends", "rank_imbalance", "cost")
        )
        return Cost(tokens=tokens, sends=sends, rank_imbalance=imbalance, cost=cost)

    def not_better(self) -> list[str]:
        """Classes whose own map costs no less than the one for all, on held-out requests where there are any."""
        figures = self.figures()
        _, answers = figures.shown()
        return [
            name
            for name, answer in zip(figures.names, answers, strict=True)
            if figures.cost(answer[OWN]) >= figures.cost(answer[ONE])
        ]
