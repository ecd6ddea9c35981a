"""Several placements side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from placement.report.solution.solution_charts import IMBALANCE, SENDS
from placement_api.pages.charts import SERIES, SHAPES, LayerChart, layer_chart
from placement_api.pages.front import measured_on
from placement_api.pages.looks import Look, size, wanted

MOST = len(SERIES)


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One placement: its letter, by which charts name it, and its mark."""

    look: Look
    letter: str
    series: str
    shape: str
    wanted: str
    size: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """groups  (what they were measured on, those that were): figures of different groups do not compare
    charts  none where there are several groups, or layers or figures differ
    """

    columns: list[Column]
    groups: list[tuple[str, list[Column]]]
    charts: list[LayerChart]

    @property
    def same_input(self) -> bool:
        return len(self.groups) == 1


def compare(looks: Sequence[Look]) -> Comparison:
    columns = [
        Column(
            look=one,
            letter="ABCDEFGH"[number],
            series=SERIES[number],
            shape=SHAPES[number % len(SHAPES)],
            wanted=wanted(one.row),
            size=size(one.summary),
        )
        for number, one in enumerate(looks)
    ]
    groups: dict[Any, list[Column]] = {}
    for one in columns:
        groups.setdefault(measured_on(one.look.row), []).append(one)
    return Comparison(
        columns=columns,
        groups=[(_measured(group[0].look), group) for group in groups.values()],
        charts=_charts(columns) if len(groups) == 1 else [],
    )


def _measured(look: Look) -> str:
    """Which requests the figures are of."""
    request, homes = look.row.request, look.row.request["group"] is not None
    share = request["holdout"]
    requests = (
        f"{share:.0%} of the requests, held out with seed {request['options']['seed']}" if share else "all requests"
    )
    rest = ", without the parts that homes are found from" if homes else ""
    return f"{look.summary['model']}: {requests}{rest}"


def moves_fit(one: Look, other: Look) -> bool:
    """True where a migration from one to the other has a meaning."""
    a, b = one.placement, other.placement
    shapes = [(map.num_nodes, map.gpus_per_node, map.slots_per_gpu) for map in (a, b)]
    return a.model.same_routing(b.model) and shapes[0] == shapes[1]


def _charts(columns: Sequence[Column]) -> list[LayerChart]:
    layer_ids = columns[0].look.placement.model.layer_ids
    known = {one.letter: one.look.figures for one in columns if one.look.figures is not None}
    if len(known) < len(columns) or any(one.look.placement.model.layer_ids != layer_ids for one in columns):
        return []
    results = {one.letter: one.look.summary["result"] for one in columns}
    heads = {one.letter: (one.series, one.shape) for one in columns}
    imbalance = {letter: figures.imbalance[results[letter]] for letter, figures in known.items()}
    charts = [layer_chart(layer_ids, imbalance, heads, IMBALANCE, 1.0)]
    if all(figures.sends_known for figures in known.values()):
        sends = {letter: figures.sends[results[letter]] for letter, figures in known.items()}
        charts.insert(0, layer_chart(layer_ids, sends, heads, SENDS, 0.0))
    return charts
