"""One map for all, or one for prefill and one for decode."""

from __future__ import annotations

from dataclasses import dataclass

from placement.advise.bench import Bench
from placement.advise.figures import SOLVED, Figures, amount
from placement.cluster import Cluster
from placement.placement_map import Placement
from placement.problem import Options
from placement.traces.cut import PREFILL, cut_requests
from placement.traces.parts import FEWEST_TOKENS
from placement.traces.trace import Trace

DECODE = "decode"
ONE, OWN = "one", "own"

Sides = tuple[Trace, Trace | None]  # training and held out


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


def phase_sides(train: Trace, held_out: Trace | None) -> dict[str, Sides] | str:
    """Both sides of prefill and of decode, or why not."""
    cuts = [cut_requests(side, PREFILL) for side in (train, held_out) if side is not None]
    found: dict[str, Sides] = {}
    for number, name in enumerate((PREFILL, DECODE)):
        views = [cut[number] for cut in cuts]
        tokens = [int(view.tokens_Q().sum()) for view in views]
        if tokens[0] < FEWEST_TOKENS or not tokens[-1]:
            return (
                f"the trace has {sum(tokens):,} tokens of {name}; both phases are needed, with {FEWEST_TOKENS} or more "
                f"to fit and some to measure on"
            )
        found[name] = (views[0], views[1] if len(views) > 1 else None)
    return found


def phases(
    bench: Bench, sides: dict[str, Sides], cluster: Cluster, options: Options, known: dict[str, Placement]
) -> Phases:
    """known: `linear`, `eplb` and `solved` for all traffic; the search for a phase's own map starts from that too."""
    answers = []
    for name, (train, held_out) in sides.items():
        workload = bench.workload(train, options.seed)
        own = bench.fit(workload, cluster, options, starts=known[SOLVED])[SOLVED]
        maps = {ONE if known_name == SOLVED else known_name: one for known_name, one in known.items()} | {OWN: own}
        figures = bench.measure(held_out or train, maps, cluster, options)
        answers.append(Phase(name=name, training_tokens=workload.num_tokens, maps=figures))
    return Phases(phases=tuple(answers))
