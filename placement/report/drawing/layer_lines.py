"""A chart of lines over the layers of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placement.report.drawing.numbers import number
from placement.report.drawing.svg import Chart, ticks


@dataclass(frozen=True, slots=True)
class Line:
    """A value a layer; None where there is none. `series` is its colour, `shape` that of its marks."""

    name: str
    series: str
    shape: str
    values: Sequence[float | None]


def layer_lines(layer_ids: Sequence[int], lines: Sequence[Line], label: str, lowest: float, title: str) -> str:
    """One line each over the layers; the axis starts at `lowest`, and `title` begins what a screen reader says."""
    known = {
        line.name: [(layer_id, y) for layer_id, y in zip(layer_ids, line.values, strict=True) if y is not None]
        for line in lines
    }
    low, high = layer_ids[0], layer_ids[-1]
    values = [y for points in known.values() for _, y in points]
    chart = Chart(
        x_ticks=layer_ticks(layer_ids),
        y_ticks=ticks(min(lowest, *values), max(values)),
        x_range=(low - 0.5, high + 0.5),
        x_label="layer",
        y_label=label,
    )
    for line in lines:
        points = known[line.name]
        chart.line(line.series, [x for x, _ in points], [y for _, y in points])
        for layer_id, value in points:
            tip = f"{line.name}, layer {layer_id}: {number(value)}"
            chart.mark(line.series, line.shape, layer_id, value, tip, radius=2.5 if len(layer_ids) <= 40 else 1.5)
    said = "; ".join(
        f"{name} from {number(min(y for _, y in points))} to {number(max(y for _, y in points))}"
        for name, points in known.items()
    )
    return chart.svg(f"{title}: {said}.")


def layer_ticks(layer_ids: Sequence[int], count: int = 8) -> list[int]:
    """At most `count` of the layers, evenly spaced."""
    step = max(-(-len(layer_ids) // count), 1)
    return list(layer_ids[::step])
