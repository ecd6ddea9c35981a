"""The figures of a solution, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.shape import Shape
from placement.cost.evaluation import Evaluation
from placement.pipeline.solution import Solution
from placement.report.drawing.lines import layer_line, layer_ticks, lines_by_layer
from placement.report.drawing.numbers import number
from placement.report.drawing.svg import Chart, ticks
from placement.report.solution.summary import shown_part

SHAPES = {"linear": "circle", "eplb": "square", "robust": "triangle", "grouped": "triangle"}
SERIES = {"linear": "s0", "eplb": "s1", "robust": "s3", "grouped": "s3"}
RESULT_SHAPE, RESULT_SERIES = "diamond", "s2"
NODE_LINES = 16
TICKS_APART = 12  # of the width of a heat map, how many numbers of layers stand beside one another
SHADES = 10  # shades of blue, and as many of orange
OVER_MEAN = "(max / mean)"
SENDS, IMBALANCE, LINK = "sends per token to other nodes", f"rank imbalance {OVER_MEAN}", f"busiest link {OVER_MEAN}"


def series_of(name: str) -> str:
    return SERIES.get(name, RESULT_SERIES)


def shape_of(name: str) -> str:
    return SHAPES.get(name, RESULT_SHAPE)


@dataclass(frozen=True, slots=True)
class Spot:
    """A mark of sends against imbalance; `link` is where a click on the service's page leads."""

    name: str
    series: str
    shape: str
    sends: float
    imbalance: float
    radius: float = 5
    kind: str = ""
    link: str = ""


def sends_against_imbalance(
    spots: Sequence[Spot], *, lowest: float = 1.0, width: int = 720, height: int = 380
) -> Chart:
    """Sends to the right, imbalance up from `lowest`; the marks are drawn by `draw_spots`."""
    xs, ys = [spot.sends for spot in spots], [spot.imbalance for spot in spots]
    return Chart(
        x_ticks=ticks(min(xs), max(xs), 6),
        y_ticks=ticks(min(lowest, *ys), max(ys)),
        x_label=SENDS,
        y_label=IMBALANCE,
        width=width,
        height=height,
    )


def draw_spots(chart: Chart, spots: Sequence[Spot]) -> None:
    for spot in spots:
        tip = f"{spot.name}: {number(spot.sends)} sends, imbalance {number(spot.imbalance)}"
        looks = {"kind": spot.kind, "link": spot.link}
        chart.mark(spot.series, spot.shape, spot.sends, spot.imbalance, tip, radius=spot.radius, **looks)


def tradeoff(solution: Solution) -> str:
    """Sends against rank imbalance, one mark a layer and a large one for the mean of each map."""
    part, answers = shown_part(solution)
    layers, means = [], []
    for name, answer in answers.items():
        mark = series_of(name), shape_of(name)
        xs, ys = answer.sends_L.tolist(), answer.rank_imbalance_L().tolist()
        for layer_id, x, y in zip(solution.placement.model.layer_ids, xs, ys, strict=True):
            layers.append(Spot(f"{name}, layer {layer_id}", *mark, x, y, 3, "faint"))
        means.append(Spot(f"{name}, mean of layers", *mark, float(np.mean(xs)), float(np.mean(ys)), 8, "mean"))
    chart = sends_against_imbalance(layers)
    draw_spots(chart, [*layers, *means])
    said = "; ".join(f"{spot.name}, {number(spot.sends)} sends at imbalance {number(spot.imbalance)}" for spot in means)
    return chart.svg(f"Scatter of sends per token against rank imbalance by layer, {part} requests: {said}.")


def by_layer(layer_ids: Sequence[int], values: Mapping[str, npt.NDArray[np.float64]], label: str, whose: str) -> str:
    """One line a map over the layers of its values [L]; what is over a mean starts at 1, all else at 0."""
    lines = [
        layer_line(name, series_of(name), shape_of(name), layer_ids, one_L.tolist()) for name, one_L in values.items()
    ]
    return lines_by_layer(
        layer_ids, lines, label, 1.0 if label.endswith(OVER_MEAN) else 0.0, f"{label} by layer{whose}"
    )


def rank_load_LG(answer: Evaluation) -> npt.NDArray[np.float64]:
    """Load of each rank over the mean rank of its layer, divided by its relative speed."""
    load_LG = answer.load_LG() / answer.cluster.speed_G()
    return np.asarray(load_LG / np.maximum(answer.load_LG().mean(axis=1, keepdims=True), 1e-300))


def heatmaps(
    loads: Mapping[str, npt.NDArray[np.float64]], layer_ids: Sequence[int], shape: Shape, whose: str = ""
) -> tuple[float, list[tuple[str, str]]]:
    """(where the colour scale of all ends, by map the loads [L, G] of the ranks over the mean rank): the scale ends at
    the largest deviation from 1, rounded up, at most 1."""
    largest = max(float(np.abs(load_LG - 1).max()) for load_LG in loads.values())
    reach = min(max(float(np.ceil(largest * 10)) / 10, 0.1), 1.0)
    maps = loads.items()
    return reach, [(name, rank_heatmap(one, layer_ids, reach, shape, f"under {name}{whose}")) for name, one in maps]


def rank_heatmap(
    ratio_LG: npt.NDArray[np.float64], layer_ids: Sequence[int], reach: float, shape: Shape, whose: str
) -> str:
    """Loads over the mean rank, the number of the hottest layer always shown and in bold.

    `whose` ends what a screen reader says first.
    """
    columns, num_ranks = ratio_LG.shape
    names = shape.engine_rank_G().tolist()
    hottest = int(ratio_LG.max(axis=1).argmax())
    chart = Chart(
        x_ticks=[],
        y_ticks=[],
        x_label="layer",
        y_label="rank",
        x_range=(-0.5, columns - 0.5),
        y_range=(num_ranks - 0.5, -0.5),
        width=360,
        height=300,
    )
    shown = set(layer_ticks(layer_ids, 6))
    for index, layer_id in enumerate(layer_ids):
        near = abs(index - hottest) * TICKS_APART < columns  # its number would touch that of the hottest
        if index == hottest or (layer_id in shown and not near):
            chart.x_tick(index, f"{layer_id}", kind="strong" if index == hottest else "")
    for rank in range(0, num_ranks, max(-(-num_ranks // 8), 1)):
        chart.y_tick(rank, f"{names[rank]}")
    level_LG = np.clip((ratio_LG - 1) / reach, -1, 1)
    chart.shades(np.rint(level_LG.T * SHADES).astype(np.int64), SHADES)
    if nodes_are_parted(shape.num_nodes, shape.gpus_per_node):
        for node in range(1, shape.num_nodes):
            chart.rule(node * shape.gpus_per_node - 0.5)
    return chart.svg(
        f"Load of {num_ranks} ranks in {columns} layers {whose}: from {number(float(ratio_LG.min()))} to "
        f"{number(float(ratio_LG.max()))} times the mean rank, the most in layer {layer_ids[hottest]}."
    )


def nodes_are_parted(num_nodes: int, gpus_per_node: int) -> bool:
    """Lines between nodes help while there is room for them."""
    return gpus_per_node > 1 and 1 < num_nodes <= NODE_LINES
