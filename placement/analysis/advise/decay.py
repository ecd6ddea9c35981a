"""How fast a map's gain decays: fitted on one part of the traffic, measured on others, against solving anew there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from placement.analysis.advise.bench import Bench
from placement.analysis.advise.map_cost import LINEAR, LITTLE, SOLVED
from placement.core.cluster import Cluster
from placement.errors import OptionError
from placement.pipeline.source import Side, TraceSource
from placement.solvers.options import Options
from placement.traces.parts import Parts, parts_of
from placement.traces.split import split_requests
from placement.traces.trace import Trace

DOMAIN, WINDOWS = "domain", "windows:4"
MOST_PARTS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Decay:
    """Costs (modelled step, us) on the requests of each part that no map was fitted on.

    by, names        the parting, and its parts
    training_tokens  of each part
    linear           what `linear` costs on each part
    cost             [fitted on][measured on]
    all_cost         of the map for all traffic, on each part
    left_out         parts that are too small, or beyond the MOST_PARTS largest
    """

    by: str
    names: tuple[str, ...]
    training_tokens: tuple[int, ...]
    linear: tuple[float, ...]
    cost: tuple[tuple[float, ...], ...]
    all_cost: tuple[float, ...]
    left_out: tuple[str, ...]

    def own_gain(self, w: int) -> float:
        """Share of the step of `linear` that the map solved for part `w` saves there."""
        return 1 - self.cost[w][w] / self.linear[w]

    def kept(self, v: int, w: int) -> float | None:
        """Share of that gain which the map of part `v` has after the traffic shifts to `w`; negative: worse than
        `linear`. None where there is hardly anything to keep."""
        return self._share(self.cost[v][w], w)

    def all_kept(self, w: int) -> float | None:
        """The same of the map for all traffic."""
        return self._share(self.all_cost[w], w)

    def _share(self, cost: float, w: int) -> float | None:
        return (1 - cost / self.linear[w]) / self.own_gain(w) if self.own_gain(w) >= LITTLE else None

    def shifts(self) -> list[tuple[float, int, int]]:
        """(kept, fitted on, measured on) of every shift to another part that has something to keep, least first."""
        parts = range(len(self.names))
        found = [(kept, v, w) for v in parts for w in parts if v != w and (kept := self.kept(v, w)) is not None]
        return sorted(found)

    @property
    def mean_kept(self) -> float | None:
        """Over all shifts."""
        shifts = self.shifts()
        return sum(kept for kept, _, _ in shifts) / len(shifts) if shifts else None

    def document(self) -> dict[str, Any]:
        parts = range(len(self.names))

        def rounded(value: float | None) -> float | None:
            return None if value is None else round(value, 6)

        return {
            "by": self.by,
            "parts": [
                {"name": name, "training_tokens": tokens, "linear": linear, "own_gain": rounded(self.own_gain(w))}
                for w, (name, tokens, linear) in enumerate(
                    zip(self.names, self.training_tokens, self.linear, strict=True)
                )
            ],
            "cost": [list(row) for row in self.cost],
            "all_cost": list(self.all_cost),
            "kept": [[rounded(self.kept(v, w)) for w in parts] for v in parts],
            "all_kept": [rounded(self.all_kept(w)) for w in parts],
            "mean_kept": rounded(self.mean_kept),
            "left_out": list(self.left_out),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Shift:
    """Parts to compare, by their numbers in `parts`, and what maps are fitted on and measured on."""

    parts: Parts
    chosen: tuple[int, ...]
    train: TraceSource
    held_out: TraceSource

    @property
    def left_out(self) -> tuple[str, ...]:
        beyond = [name for part, name in enumerate(self.parts.names) if part not in self.chosen]
        return (*self.parts.left_out, *beyond)


def shift_of(trace: Trace, by: str, holdout: float, seed: int) -> Shift | None:
    """The parts with most tokens, each split by request (not at all with no holdout); None of fewer than two."""
    try:
        parts = parts_of(trace, by)
    except OptionError:
        return None
    train, held_out = split_requests(trace, holdout, seed, parts) if holdout else (trace, trace)
    fitted, measured = (
        [int(tokens_Q[parts.part_Q == part].sum()) for part in range(len(parts.names))]
        for tokens_Q in (train.tokens_Q(), held_out.tokens_Q())
    )
    # entries with one id are on one side: those of a part may all be on the same
    whole = [part for part in range(len(parts.names)) if fitted[part] and measured[part]]
    largest = sorted(whole, key=lambda part: (-fitted[part], part))[:MOST_PARTS]
    if len(largest) < 2:
        return None
    return Shift(parts=parts, chosen=tuple(sorted(largest)), train=TraceSource(train), held_out=TraceSource(held_out))


def drift(bench: Bench, shift: Shift, cluster: Cluster, options: Options) -> Decay:
    parts, chosen = shift.parts, shift.chosen

    def sides(source: TraceSource) -> list[tuple[int, Side]]:
        """The chosen parts, all of which have tokens."""
        return [(part, side) for part in chosen if (side := source.of(parts, part)) is not None]

    whole = bench.fit(bench.workload(shift.train, options.seed), cluster, options, baselines=True)
    maps = {LINEAR: whole[LINEAR], SOLVED: whole[SOLVED]}
    tokens = []
    for part, side in sides(shift.train):
        workload = bench.workload(side, options.seed)
        tokens.append(workload.num_tokens)
        maps[f"part {part}"] = bench.fit(workload, cluster, options)[SOLVED]
    figures = [bench.measure(side, maps, cluster, options) for _, side in sides(shift.held_out)]
    return Decay(
        by=parts.by,
        names=tuple(parts.names[part] for part in chosen),
        training_tokens=tuple(tokens),
        linear=tuple(one[LINEAR].cost for one in figures),
        cost=tuple(tuple(one[f"part {part}"].cost for one in figures) for part in chosen),
        all_cost=tuple(one[SOLVED].cost for one in figures),
        left_out=shift.left_out,
    )
