"""Traffic from node to node as heat maps, before and after, and which node and GPU are the busiest of a layer."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from placement.cost.evaluation import Evaluation
from placement.report.drawing.numbers import number
from placement.report.drawing.svg import Chart
from placement.report.solution.solution_charts import SHADES

BEFORE = ("current", "fewest-copies", "linear")  # maps that were, before the answer: the first that is there
WIDTH, HEIGHT, FEW_NODES = 360, 358, 6  # of a picture, whose plot is square; so many nodes have figures in the cells
ON_DARK = 0.6  # shade from which letters are white
LEFT_OUT = 1e-12  # sends per token that are rounding
Floats = npt.NDArray[np.float64]


def before_of(answers: Mapping[str, Evaluation]) -> str:
    """The map that others are set beside: the one in use, else linear, else the first."""
    return next((name for name in BEFORE if name in answers), next(iter(answers)))


def busiest_link_L(answer: Evaluation) -> Floats:
    """What goes into or out of the busiest node over the mean node, whichever is more, float64 [L]."""
    return np.maximum(answer.busiest_in_L(), answer.busiest_out_L())


def busiest_of(answer: Evaluation, layer: int) -> str:
    """The rank that serves most and the direction of a node that carries most, in a layer, in words."""
    load_G = answer.load_LG()[layer] / answer.cluster.speed_G()
    said = f"busiest GPU rank {answer.cluster.engine_rank_G()[load_G.argmax()]}"
    links_NN = answer.links_LNN[layer]
    if not np.isfinite(links_NN).all() or not links_NN.sum() > LEFT_OUT:
        return said
    into_N, out_N = links_NN.sum(axis=0), links_NN.sum(axis=1)
    into = into_N.max() >= out_N.max()
    node = int((into_N if into else out_N).argmax())
    return f"{said}, busiest link {'into' if into else 'out of'} node {node}"


def traffic_maps(answers: Mapping[str, Evaluation], whose: str) -> tuple[str, float, list[tuple[str, str]]] | None:
    """(which map is the measure, where the colour scale of all ends, a heat map by map), means over layers.

    Colours are sends over the mean link of the map `before_of`, those of sums of a node over its mean node. None where
    nothing is sent, or sends are unknown.

    whose: ends what a screen reader says first
    """
    links = {name: answer.links_LNN.mean(axis=0) for name, answer in answers.items()}
    before = before_of(answers)
    if not all(np.isfinite(links_NN).all() for links_NN in links.values()) or not links[before].sum() > LEFT_OUT:
        return None
    num_nodes = len(links[before])
    pairs = num_nodes**2 - (0 if links[before].trace() > LEFT_OUT else num_nodes)
    total = float(links[before].sum())
    ratios = {name: _with_sums(links_NN, total / pairs, total / num_nodes) for name, links_NN in links.items()}
    at_home = pairs == num_nodes**2
    cells_XX = np.ones((num_nodes + 1, num_nodes + 1), dtype=bool)
    cells_XX[:-1, :-1] = at_home | ~np.eye(num_nodes, dtype=bool)
    cells_XX[-1, -1] = False
    largest = max(float(np.abs(ratio_XX - 1)[cells_XX].max()) for ratio_XX in ratios.values())
    reach = min(max(float(np.ceil(largest * 10)) / 10, 0.1), 1.0)
    maps = [(name, _heatmap(links[name], ratios[name], cells_XX, reach, f"under {name}{whose}")) for name in answers]
    return before, reach, maps


def _with_sums(links_NN: Floats, link: float, node: float) -> Floats:
    """Links over `link`; in the last column what leaves each home, in the last row what each node gets, over `node`."""
    ratio_XX = np.ones((len(links_NN) + 1, len(links_NN) + 1))
    ratio_XX[:-1, :-1] = links_NN / link
    ratio_XX[:-1, -1], ratio_XX[-1, :-1] = links_NN.sum(axis=1) / node, links_NN.sum(axis=0) / node
    return ratio_XX


def _heatmap(links_NN: Floats, ratio_XX: Floats, cells_XX: npt.NDArray[np.bool_], reach: float, whose: str) -> str:
    """Homes down, nodes across; the sums stand below and to the right, apart."""
    num_nodes = len(links_NN)
    wide = -(-num_nodes // 12)  # cells that a sum is wide, so that many nodes leave sums that can be seen
    repeat = np.append(np.ones(num_nodes, dtype=np.int64), wide)
    level_XX = np.where(cells_XX, np.clip((ratio_XX - 1) / reach, -1, 1), 0.0)
    shade_YX = np.rint(level_XX.repeat(repeat, axis=0).repeat(repeat, axis=1) * SHADES).astype(np.int64)
    size = len(shade_YX)
    chart = Chart(
        x_ticks=[],
        y_ticks=[],
        x_label="to node",
        y_label="home node",
        x_range=(-0.5, size - 0.5),
        y_range=(size - 0.5, -0.5),
        width=WIDTH,
        height=HEIGHT,
    )
    chart.shades(shade_YX, SHADES)
    chart.rule(num_nodes - 0.5)
    chart.upright(num_nodes - 0.5)
    middle = num_nodes - 0.5 + wide / 2
    for node in range(0, num_nodes, max(-(-num_nodes // 8), 1)):
        chart.x_tick(node, f"{node}")
        chart.y_tick(node, f"{node}")
    chart.x_tick(middle, "out")
    chart.y_tick(middle, "in")
    into_N, out_N = links_NN.sum(axis=0), links_NN.sum(axis=1)
    if num_nodes <= FEW_NODES:
        value_XX = np.zeros(cells_XX.shape)
        value_XX[:-1, :-1], value_XX[:-1, -1], value_XX[-1, :-1] = links_NN, out_N, into_N
        for row, column in zip(*np.nonzero(cells_XX), strict=True):
            x, y = (middle if place == num_nodes else place for place in (column, row))
            kind = "on" if abs(level_XX[row, column]) > ON_DARK else "label"
            chart.text(chart.x(x), chart.y(y) + 4, number(float(value_XX[row, column])), "middle", kind)
    for node in range(num_nodes):
        most = int(links_NN[:, node].argmax())
        tip = (
            f"into node {node}: {number(float(into_N[node]))} sends per token, most from node {most} "
            f"({number(float(links_NN[most, node]))}); out of node {node}: {number(float(out_N[node]))}"
        )
        chart.column(node - 0.5, node + 0.5, tip, str(node))
    into, out = int(into_N.argmax()), int(out_N.argmax())
    mean = number(float(into_N.mean()))
    return chart.svg(
        f"Sends per token from {num_nodes} home nodes to {num_nodes} nodes {whose}: most into node {into}, "
        f"{number(float(into_N[into]))}, most out of node {out}, {number(float(out_N[out]))}, of a mean of {mean}."
    )
