"""The figures of a solution, as SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

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
SHADES = 10  # of blue, and as many of orange
PerLayer = Callable[[Evaluation], npt.NDArray[np.float64]]


def series_of(name: str) -> str:
    return SERIES.get(name, RESULT_SERIES)


def shape_of(name: str) -> str:
    return SHAPES.get(name, RESULT_SHAPE)


def tradeoff(solution: Solution) -> str:
    """Sends against rank imbalance, one mark a layer and a large one for the mean of each map."""
    part, answers = shown_part(solution)
    sends = {name: answer.sends_L for name, answer in answers.items()}
    imbalance = {name: answer.rank_imbalance_L() for name, answer in answers.items()}
    all_sends, all_imbalance = np.concatenate(list(sends.values())), np.concatenate(list(imbalance.values()))
    chart = Chart(
        x_ticks=ticks(float(all_sends.min()), float(all_sends.max()), 6),
        y_ticks=ticks(1.0, float(all_imbalance.max())),
        x_label="sends per token to other nodes",
        y_label="rank imbalance (max / mean)",
        width=720,
        height=380,
    )
    layer_ids = solution.placement.model.layer_ids
    for name in answers:
        for layer_id, x, y in zip(layer_ids, sends[name].tolist(), imbalance[name].tolist(), strict=True):
            tip = f"{name}, layer {layer_id}: {number(x)} sends, imbalance {number(y)}"
            chart.mark(series_of(name), shape_of(name), x, y, tip, kind="faint")
    means = {name: (float(sends[name].mean()), float(imbalance[name].mean())) for name in answers}
    for name, (x, y) in means.items():
        tip = f"{name}, mean of layers: {number(x)} sends, imbalance {number(y)}"
        chart.mark(series_of(name), shape_of(name), x, y, tip, radius=8, kind="mean")
    said = "; ".join(f"{name} {number(x)} sends at imbalance {number(y)}" for name, (x, y) in means.items())
    return chart.svg(f"Scatter of sends per token against rank imbalance by layer, {part} requests. Means: {said}.")


def per_layer(solution: Solution, values_of: PerLayer, label: str, lowest: float) -> str:
    """One line a map over the layers; the axis starts at `lowest`."""
    part, answers = shown_part(solution)
    layer_ids = solution.placement.model.layer_ids
    lines = [
        layer_line(name, series_of(name), shape_of(name), layer_ids, values_of(answer).tolist())
        for name, answer in answers.items()
    ]
    return lines_by_layer(layer_ids, lines, label, lowest, f"{label} by layer, {part} requests")


def sends_by_layer(solution: Solution) -> str:
    return per_layer(solution, lambda answer: answer.sends_L, "sends per token to other nodes", 0.0)


def imbalance_by_layer(solution: Solution) -> str:
    return per_layer(solution, lambda answer: answer.rank_imbalance_L(), "rank imbalance (max / mean)", 1.0)


def load_reach(solution: Solution) -> float:
    """Where the colour scale of all heatmaps ends."""
    _, answers = shown_part(solution)
    return reach_of([rank_load_LG(answer) for answer in answers.values()])


def reach_of(ratios: Sequence[npt.NDArray[np.float64]]) -> float:
    """The largest deviation from 1, rounded up, at most 1."""
    largest = max(float(np.abs(ratio - 1).max()) for ratio in ratios)
    return min(max(float(np.ceil(largest * 10)) / 10, 0.1), 1.0)


def rank_load_LG(answer: Evaluation) -> npt.NDArray[np.float64]:
    """Load of each rank over the mean rank of its layer, divided by its relative speed."""
    load_LG = answer.load_LG() / answer.cluster.speed_G()
    return np.asarray(load_LG / np.maximum(answer.load_LG().mean(axis=1, keepdims=True), 1e-300))


def load_heatmap(solution: Solution, name: str) -> str:
    """Load of every rank (down) in every layer (across) under one map."""
    part, answers = shown_part(solution)
    return rank_heatmap(
        rank_load_LG(answers[name]),
        solution.placement.model.layer_ids,
        load_reach(solution),
        solution.cluster.num_nodes,
        f"under {name}, {part} requests",
    )


def rank_heatmap(
    ratio_LG: npt.NDArray[np.float64], layer_ids: Sequence[int], reach: float, num_nodes: int, whose: str
) -> str:
    """Loads over the mean rank; `whose` ends what a screen reader says first."""
    columns, num_ranks = ratio_LG.shape
    shown = layer_ticks(layer_ids, 6)
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
    for index, layer_id in enumerate(layer_ids):
        if layer_id in shown:
            chart.x_tick(index, f"{layer_id}")
    for rank in range(0, num_ranks, max(-(-num_ranks // 8), 1)):
        chart.y_tick(rank)
    level_LG = np.clip((ratio_LG - 1) / reach, -1, 1)
    chart.shades(np.rint(level_LG.T * SHADES).astype(np.int64), SHADES)
    gpus_per_node = num_ranks // num_nodes
    if _parted(num_nodes, gpus_per_node):
        for node in range(1, num_nodes):
            chart.rule(node * gpus_per_node - 0.5)
    return chart.svg(
        f"Load of {num_ranks} ranks in {columns} layers {whose}: from "
        f"{number(float(ratio_LG.min()))} to {number(float(ratio_LG.max()))} times the mean rank."
    )


def nodes_are_parted(solution: Solution) -> bool:
    """Lines between nodes help while there is room for them."""
    return _parted(solution.cluster.num_nodes, solution.cluster.gpus_per_node)


def _parted(num_nodes: int, gpus_per_node: int) -> bool:
    return gpus_per_node > 1 and 1 < num_nodes <= NODE_LINES
