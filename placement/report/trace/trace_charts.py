"""The figures of a study, as SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

from placement.analysis.info import Study
from placement.analysis.info.domains import Telling
from placement.report.drawing.lines import Legend, Line, layer_line, legend, lines_by_layer, lines_over

MARKS = (("s2", "diamond"), ("s3", "triangle"), ("s1", "square"), ("s0", "circle"))


def _lines(
    study: Study, measures: Sequence[tuple[str, str]], label: str, marks: Sequence[int], lowest: float = 0.0
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


def charts(study: Study) -> dict[str, tuple[str, Legend] | None]:
    """The charts of the page by name, each with its legend; None where the trace has nothing to show."""
    by, ranks = study.by, study.num_nodes * study.gpus_per_node
    load = [("load_skew", "experts"), *([("rank_imbalance", f"{ranks} ranks")] if ranks > study.num_nodes else [])]
    load += [("node_imbalance", f"{study.num_nodes} nodes")]
    spread = [("load_gini", "Gini coefficient"), ("top_share", "share of the busiest tenth")]
    drift = [("drift", f"{by} against all"), ("drift_chance", f"random {by} against all")]
    foretelling = [("own", "the same request"), ("same_domain", f"another of its {by}")]
    foretelling += [("other_domain", f"another of another {by}")]
    overlap = [("overlap_next", "the token before it"), ("overlap_request", "any token of its request")]
    overlap += [("overlap_domain", f"another request of its {by}"), ("overlap_chance", "by popularity alone")]
    return {
        "load": _lines(study, load, "max / mean", (0, 2, 3), 1.0),
        "spread": _lines(study, spread, "0 to 1", (0, 1)),
        "drift": _lines(study, drift, "total variation", (0, 3)),
        "foretelling": _lines(study, foretelling, "correlation over experts", (0, 1, 3)),
        "overlap": _lines(study, overlap, "share of a token's experts", (2, 0, 1, 3)),
        "accuracy": _accuracy(study.telling) if study.telling else None,
    }


def _accuracy(telling: Telling) -> tuple[str, Legend] | None:
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
