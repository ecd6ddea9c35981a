"""The Markdown result: one table a case, and the verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, stdev

from machine import describe_machine
from verdict import Point, better_on_both, distance

DEFAULT = "ours, weight 1.5"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One method on one split, held out; sends and imbalance are means over layers, `worst` is that of the worst."""

    sends: float
    imbalance: float
    worst: float
    seconds: float
    peak_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One method on all splits of a case."""

    case: str
    name: str
    splits: tuple[Measured, ...]

    @property
    def ours(self) -> bool:
        return self.name.startswith("ours")

    def point(self) -> Point:
        return Point(mean(one.sends for one in self.splits), mean(one.imbalance for one in self.splits))


def report(rows: Sequence[Row], skipped: Sequence[str], seeds: Sequence[int]) -> str:
    lines = [f"{describe_machine()}; split seeds {list(seeds)}"]
    for case in dict.fromkeys(row.case for row in rows):
        lines += ["", f"## {case}", "", *case_lines([row for row in rows if row.case == case])]
    if skipped:
        lines += ["", "## Not run", "", *(f"- {why}" for why in skipped)]
    return "\n".join(lines) + "\n"


def case_lines(rows: Sequence[Row]) -> list[str]:
    default = next(row.point() for row in rows if row.name == DEFAULT)
    eplb = next(row.point() for row in rows if row.name == "EPLB global")
    front = [row.point() for row in rows if row.ours]
    lines = [
        "| method | sends/token | of eplb's | rank imbalance | worst layer | s/layer | peak MB | better than default on both "
        "| beyond our front |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (not row.ours, row.point().sends if not row.ours else 0.0)):
        point = row.point()
        beyond = 0.0 if row.ours else distance(point, front)
        lines.append(
            f"| {row.name} | {_spread([one.sends for one in row.splits])} | {point.sends / eplb.sends:.3f} "
            f"| {_spread([one.imbalance for one in row.splits])} | {max(one.worst for one in row.splits):.2f} "
            f"| {mean(one.seconds for one in row.splits):.3f} | {max(one.peak_bytes for one in row.splits) / 1e6:.0f} "
            f"| {'' if row.ours else 'YES' if better_on_both(point, default) else 'no'} "
            f"| {'' if not beyond else f'{beyond:.2%}'} |"
        )
    return lines


def _spread(values: Sequence[float]) -> str:
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
