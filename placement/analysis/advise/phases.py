"""One map for all, or one for prefill and one for decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placement.analysis.advise.bench import Bench
from placement.analysis.advise.map_cost import SOLVED, Figures, amount
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.pipeline.by_class_solution import ONE, OWN
from placement.pipeline.source import TraceSource
from placement.solvers.options import Options
from placement.traces.classes import PHASES, Sides


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """maps: `linear`, `eplb`, `one` (solved for all tokens) and `own` (for this phase) on its tokens."""

    name: str
    training_tokens: int
    maps: dict[str, Figures]

    @property
    def own_gain(self) -> float:
        """Share of the step of this phase that a map of its own saves."""
        return self.maps[OWN].gain_over(self.maps[ONE])


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    phases: tuple[Phase, ...]

    @property
    def verdict(self) -> str:
        """`one` map, unless a map of its own saves some of the step of a phase: `own`."""
        return ONE if all(amount(one.own_gain) == "hardly" for one in self.phases) else OWN


def phases(
    bench: Bench, classes: Sequence[Sides], cluster: Cluster, options: Options, known: dict[str, Placement]
) -> Phases:
    """What `solve_by` with `phase` finds. known: `linear`, `eplb` and `solved` for all traffic, from which the search
    for a phase's own map starts too."""
    answers = []
    for name, sides in zip(PHASES, classes, strict=True):
        workload = bench.workload(TraceSource(sides[0]), options.seed)
        own = bench.fit(workload, cluster, options, starts=known[SOLVED])[SOLVED]
        maps = {ONE if given == SOLVED else given: one for given, one in known.items()} | {OWN: own}
        figures = bench.measure(TraceSource(sides[-1]), maps, cluster, options)
        answers.append(Phase(name=name, training_tokens=workload.num_tokens, maps=figures))
    return Phases(phases=tuple(answers))
