"""The figures of a study, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from placement.analysis.study.domains import Telling
from placement.analysis.study.findings import Study
from placement.report.drawing.layer_lines import Line, layer_lines
from placement.report.drawing.numbers import number, percent
from placement.report.drawing.svg import Chart, ticks

Legend = list[tuple[str, str, str]]
MARKS = (("s2", "diamond"), ("s3", "triangle"), ("s1", "square"), ("s0", "circle"))


def lines(
    study: Study,
    measures: Sequence[tuple[str, str]],
    label: str,
    lowest: float = 0.0,
    marks: Sequence[int] = (0, 1, 2, 3),
) -> tuple[str, Legend] | None:
    """Chart of some (measure, what it is called) over layers, with its legend; None where no layer has any."""
    known = [(measure, name, MARKS[mark]) for (measure, name), mark in zip(measures, marks, strict=False)]
    shown = [
        Line(name, *mark, [getattr(layer, measure) for layer in study.layers])
        for measure, name, mark in known
        if study.values(measure)
    ]
    if not shown:
        return None
    layer_ids = study.model.layer_ids
    return layer_lines(layer_ids, shown, label, lowest, f"{label} by layer"), [
        (line.name, line.series, line.shape) for line in shown
    ]


def accuracy_by_tokens(telling: Telling) -> str:
    """Held-out accuracy against the tokens seen, on a scale where each step doubles them."""
    points = [(math.log2(step.tokens), step) for step in telling.steps if step.tokens]
    low, high = points[0][0] - 0.5, points[-1][0] + 0.5
    chart = Chart(
        x_ticks=[],
        y_ticks=ticks(0.0, min(max(telling.majority, *(step.accuracy for _, step in points)) * 1.02, 1.0)),
        x_range=(low, high),
        x_label="tokens of a request that were seen",
        y_label="share of requests told right",
    )
    for x, step in points:
        chart.text(chart.x(x), chart.bottom + 18, f"{step.tokens}", "middle")
    chart.line("s0", [low, high], [telling.majority] * 2)
    for series, shape, name, values in (
        ("s3", "triangle", "mean over domains", [step.balanced for _, step in points]),
        ("s2", "diamond", "all requests", [step.accuracy for _, step in points]),
    ):
        chart.line(series, [x for x, _ in points], values)
        for (x, step), value in zip(points, values, strict=True):
            chart.mark(series, shape, x, value, f"{name}, {step.seen}: {percent(value)}", radius=3.5)
    said = "; ".join(f"{step.tokens} tokens {number(step.accuracy)}" for _, step in points)
    return chart.svg(f"Held-out accuracy by tokens seen: {said}; always the most frequent {number(telling.majority)}.")


ACCURACY_LEGEND: Legend = [
    ("all requests", "s2", "diamond"),
    ("mean over domains", "s3", "triangle"),
    ("always the most frequent", "s0", "circle"),
]
