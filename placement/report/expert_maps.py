"""Which rank holds which expert: one table a node, for every layer; plain HTML that needs no script."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from placement.report.figures import rank_load_LG
from placement.report.numbers import number
from placement.report.summary import shown_part
from placement.solution import Solution

EDGES = (0.25, 0.5, 0.75, 0.9, 1.1, 1.33, 2.0, 4.0)
CLASS_LABELS = ("under 0.25", "0.25", "0.5", "0.75", "0.9 to 1.1", "1.1", "1.33", "2", "4 and over")


@dataclass(frozen=True, slots=True)
class RankRow:
    """cells: (expert, colour class 0..8, whether the expert has further slots), by expert id."""

    rank: int
    load: str
    cells: list[tuple[int, int, bool]]


@dataclass(frozen=True, slots=True)
class LayerMap:
    layer_id: int
    note: str
    nodes: list[list[RankRow]]


def layer_maps(solution: Solution) -> list[LayerMap]:
    """The result's map, slots coloured by their load over the mean slot of the layer."""
    _, answers = shown_part(solution)
    answer, placement = answers[solution.result_name], solution.placement
    rank_load = rank_load_LG(answer)
    load_LP = answer.load_LP / np.maximum(answer.load_LP.mean(axis=1, keepdims=True), 1e-300)
    class_LP = np.searchsorted(EDGES, load_LP, side="right")
    copies_LE = placement.copies_LE()
    sends_L, imbalance_L = answer.sends_L, answer.rank_imbalance_L()
    shape = (placement.num_nodes, placement.gpus_per_node, placement.slots_per_gpu)
    maps = []
    for layer, layer_id in enumerate(placement.model.layer_ids):
        experts = placement.phy2log_LP[layer].reshape(shape)
        classes = class_LP[layer].reshape(shape)
        nodes = []
        for node in range(shape[0]):
            rows = []
            for gpu in range(shape[1]):
                rank = node * shape[1] + gpu
                held = sorted(zip(experts[node, gpu].tolist(), classes[node, gpu].tolist(), strict=True))
                cells = [(expert, level, bool(copies_LE[layer, expert] > 1)) for expert, level in held]
                rows.append(RankRow(rank, number(float(rank_load[layer, rank])), cells))
            nodes.append(rows)
        note = f"{number(float(sends_L[layer]))} sends, rank imbalance {number(float(imbalance_L[layer]))}"
        maps.append(LayerMap(layer_id, note, nodes))
    return maps
