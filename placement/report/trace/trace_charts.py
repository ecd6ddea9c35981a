"""The figures of a study, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from placement.analysis.info import Study
from placement.analysis.info.domains import Telling
from placement.report.drawing.lines import Legend, Line, layer_line, legend, lines_by_layer, lines_over

MARKS = (("s2", "diamond"), ("s3", "triangle"), ("s1", "square"), ("s0", "circle"))


def lines(
    study: Study,
    measures: Sequence[tuple[str, str]],
    label: str,
    lowest: float = 0.0,
    marks: Sequence[int] = (0, 1, 2, 3),
) -> tuple[str, Legend] | None:
    """Chart of some (measure, what it is called) over layers, with its legend; None where no layer has any."""
    layer_ids = study.model.layer_ids
    shown = [
        layer_line(name, *MARKS[mark], layer_ids, [getattr(layer, measure) for layer in study.layers])
        for (measure, name), mark in zip(measures, marks, strict=False)
        if study.values(measure)
    ]
    if not shown:
        return None
    return lines_by_layer(layer_ids, shown, label, lowest, f"{label} by layer"), legend(shown)


def accuracy_by_tokens(telling: Telling) -> tuple[str, Legend] | None:
    """Held-out accuracy against the tokens seen, on a scale where each step doubles them; with its legend."""
    steps = [(math.log2(step.tokens), step) for step in telling.steps if step.tokens]
    if not steps:
        return None
    ends = (steps[0][0] - 0.5, steps[-1][0] + 0.5)
    shown = [
        Line("all requests", *MARKS[0], [(x, step.accuracy) for x, step in steps]),
        Line("mean over domains", *MARKS[1], [(x, step.balanced) for x, step in steps]),
        Line("always the most frequent", "s0", "", [(x, telling.majority) for x in ends]),
    ]
    svg = lines_over(
        shown,
        x_label="tokens of a request that were seen",
        y_label="share of requests told right",
        title="Held-out accuracy",
        x_names={x: f"{step.tokens}" for x, step in steps},
    )
    return svg, legend(shown)
