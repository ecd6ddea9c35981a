"""The charts of the page, drawn as the report's are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placement.report.drawing.lines import layer_line, lines_by_layer
from placement.report.solution.expert_maps import CLASS_LABELS, ShownLayer, layer_map
from placement.report.solution.solution_charts import (
    IMBALANCE,
    SENDS,
    series_of,
    shape_of,
)
from placement_api.pages.figures import Figures, Floats
from placement_api.pages.looks import Look

SERIES = tuple(f"s{number}" for number in (2, 1, 3, 0, 4, 5, 6, 7))
SHAPES = ("diamond", "square", "triangle", "circle")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerChart:
    """heads: (name, series, shape) of the columns; rows: (layer id, values)."""

    label: str
    svg: str
    heads: list[tuple[str, str, str]]
    rows: list[tuple[int, list[float]]]


def layer_charts(look: Look) -> list[LayerChart]:
    """Sends, if they are known, and imbalance of every map; none without figures."""
    if look.figures is None:
        return []
    layer_ids, figures = look.placement.model.layer_ids, look.figures
    heads = {name: (series_of(name), shape_of(name)) for name in figures.imbalance}
    charts = [layer_chart(layer_ids, figures.imbalance, heads, IMBALANCE, 1.0)]
    if figures.sends_known:
        charts.insert(0, layer_chart(layer_ids, figures.sends, heads, SENDS, 0.0))
    return charts


def layer_chart(
    layer_ids: Sequence[int], values: dict[str, Floats], heads: dict[str, tuple[str, str]], label: str, lowest: float
) -> LayerChart:
    lines = [layer_line(name, *heads[name], layer_ids, values_L.tolist()) for name, values_L in values.items()]
    rows = [[float(values_L[layer]) for values_L in values.values()] for layer in range(len(layer_ids))]
    return LayerChart(
        label=label,
        svg=lines_by_layer(layer_ids, lines, label, lowest, f"{label} by layer"),
        heads=[(name, *heads[name]) for name in values],
        rows=list(zip(layer_ids, rows, strict=True)),
    )


def experts_of(look: Look, layer: int) -> ShownLayer | None:
    """Which rank holds which expert in a layer, given by its position."""
    figures: Figures | None = look.figures
    if figures is None:
        return None
    name = look.row.summary["result"]
    return layer_map(
        look.placement,
        layer,
        figures.rank_load[name][layer],
        figures.slot_load_LP[layer],
        float(figures.sends[name][layer]),
        float(figures.imbalance[name][layer]),
    )


__all__ = ["CLASS_LABELS", "LayerChart", "experts_of", "layer_chart", "layer_charts"]
