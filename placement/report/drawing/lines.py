"""Charts of lines: over the layers of a model, or over anything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from placement.report.drawing.numbers import number
from placement.report.drawing.svg import Chart, ticks

Legend = list[tuple[str, str, str]]


@dataclass(frozen=True, slots=True)
class Line:
    """A line through points (x, y): `series` is its colour, `shape` that of its marks; no marks without a shape."""

    name: str
    series: str
    shape: str
    points: Sequence[tuple[float, float]]


def legend(lines: Sequence[Line]) -> Legend:
    """(name, series, shape) of each line; of one without marks a circle stands for the line."""
    return [(line.name, line.series, line.shape or "circle") for line in lines]


def lines_over(
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    title: str,
    lowest: float = 0.0,
    x_names: Mapping[float, str] | None = None,
) -> str:
    """Lines with a tip at every mark.

    Args:
        lines: one or more, each with a point or more
        title: begins what a screen reader says
        lowest: where the y axis starts, unless a point lies below
        x_names: what stands on the x axis, instead of round numbers
    """
    xs = sorted({x for line in lines for x, _ in line.points})
    ys = [y for line in lines for _, y in line.points]
    pad = (xs[-1] - xs[0]) / 20 or 0.5
    whole = all(x == int(x) for x in xs) and len(xs) <= 8
    x_ticks = list(x_names or (xs if whole else [x for x in ticks(xs[0], xs[-1]) if x >= xs[0]]))
    chart = Chart(
        x_ticks=[] if x_names else x_ticks,
        y_ticks=ticks(min(lowest, *ys), max(ys)),
        x_range=(xs[0] - pad, max(xs[-1], x_ticks[-1]) + pad),
        x_label=x_label,
        y_label=y_label,
    )
    names = {x: number(x) for x in xs} | dict(x_names or {})
    for x, name in (x_names or {}).items():
        chart.x_tick(x, name)
    for line in lines:
        chart.line(line.series, *zip(*line.points, strict=True))
        for x, y in line.points if line.shape else ():
            chart.mark(line.series, line.shape, x, y, f"{line.name}, {names[x]}: {number(y)}", radius=3.5)
    said = "; ".join(f"{line.name} {', '.join(f'{number(y)} at {names[x]}' for x, y in line.points)}" for line in lines)
    return chart.svg(f"{title} by {x_label}: {said}.")


def layer_line(name: str, series: str, shape: str, layer_ids: Sequence[int], values: Sequence[float | None]) -> Line:
    """The line of a value a layer; None where there is none."""
    return Line(name, series, shape, [(x, y) for x, y in zip(layer_ids, values, strict=True) if y is not None])


def lines_by_layer(layer_ids: Sequence[int], lines: Sequence[Line], label: str, lowest: float, title: str) -> str:
    """Lines over the layers, whose figures a pointer finds layer by layer; else as `lines_over`."""
    low, high = layer_ids[0], layer_ids[-1]
    values = [y for line in lines for _, y in line.points]
    chart = Chart(
        x_ticks=layer_ticks(layer_ids),
        y_ticks=ticks(min(lowest, *values), max(1.05 * lowest, *values)),  # no picture of rounding alone
        x_range=(low - 0.5, high + 0.5),
        x_label="layer",
        y_label=label,
    )
    told: dict[float, list[str]] = {layer_id: [] for layer_id in layer_ids}
    for line in lines:
        chart.line(line.series, *zip(*line.points, strict=True))
        for layer_id, value in line.points:
            chart.mark(line.series, line.shape, layer_id, value, radius=2.5 if len(layer_ids) <= 40 else 1.5)
            told[layer_id].append(f"{line.name} {number(value)}")
    edges = [low - 0.5, *((a + b) / 2 for a, b in pairwise(layer_ids)), high + 0.5]
    for layer_id, (start, stop) in zip(layer_ids, pairwise(edges), strict=True):
        chart.column(start, stop, f"layer {layer_id}: {', '.join(told[layer_id])}", str(layer_id))
    said = "; ".join(
        f"{line.name} from {number(min(y for _, y in line.points))} to {number(max(y for _, y in line.points))}"
        for line in lines
    )
    return chart.svg(f"{title}: {said}.")


def layer_ticks(layer_ids: Sequence[int], count: int = 8) -> list[int]:
    """At most `count` of the layers, evenly spaced."""
    step = max(-(-len(layer_ids) // count), 1)
    return list(layer_ids[::step])
