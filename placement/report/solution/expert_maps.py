"""Which rank holds which expert: one table a node, for every layer; plain HTML that needs no script."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.placement import Placement
from placement.cost.evaluation import Evaluation
from placement.pipeline.solution import Solution
from placement.report.drawing.numbers import number
from placement.report.solution.solution_charts import rank_load_LG
from placement.report.solution.summary import shown_part
from placement.report.solution.traffic_charts import busiest_of

EDGES = (0.25, 0.5, 0.75, 0.9, 1.1, 1.33, 2.0, 4.0)
CLASS_LABELS = ("under 0.25", "0.25", "0.5", "0.75", "0.9 to 1.1", "1.1", "1.33", "2", "4 and over")


@dataclass(frozen=True, slots=True)
class Cell:
    """A slot: its expert, its load over the mean slot of the layer, the colour class 0..8 of that, and the slots that
    the expert has."""

    expert: int
    load: float
    level: int
    copies: int


@dataclass(frozen=True, slots=True)
class RankRow:
    """The cells of a rank, by expert id."""

    rank: int  # as the engine numbers ranks
    load: float
    cells: list[Cell]


@dataclass(frozen=True, slots=True)
class ShownLayer:
    layer_id: int
    note: str
    nodes: list[list[RankRow]]


def layer_maps(solution: Solution) -> list[ShownLayer]:
    """The result's map, slots coloured by their load over the mean slot of the layer."""
    _, answers = shown_part(solution)
    answer = answers[solution.result_name]
    rank_load, slot_load = rank_load_LG(answer), slot_load_LP(answer)
    sends_L, imbalance_L = answer.sends_L, answer.rank_imbalance_L()
    return [
        layer_map(
            solution.placement,
            layer,
            rank_load[layer],
            slot_load[layer],
            float(sends_L[layer]),
            float(imbalance_L[layer]),
            busiest_of(answer, layer),
        )
        for layer in range(solution.placement.model.num_layers)
    ]


def slot_load_LP(answer: Evaluation) -> npt.NDArray[np.float64]:
    """Load of each slot over the mean slot of its layer."""
    return np.asarray(answer.load_LP / np.maximum(answer.load_LP.mean(axis=1, keepdims=True), 1e-300))


def layer_map(
    placement: Placement,
    layer: int,
    rank_load_G: npt.NDArray[np.float64],
    slot_load_P: npt.NDArray[np.float64],
    sends: float,
    imbalance: float,
    busiest: str = "",
) -> ShownLayer:
    """One layer, its loads given over their means; `busiest` says more of the layer."""
    shape = (placement.num_nodes, placement.gpus_per_node, placement.slots_per_gpu)
    copies_E = placement.copies_LE()[layer]
    expert_P, level_P = placement.phy2log_LP[layer], np.searchsorted(EDGES, slot_load_P, side="right")
    columns = zip(expert_P.tolist(), slot_load_P.tolist(), level_P.tolist(), copies_E[expert_P].tolist(), strict=True)
    cells = [Cell(*column) for column in columns]
    rows = [
        RankRow(name, load, sorted(cells[rank * shape[2] : (rank + 1) * shape[2]], key=lambda cell: cell.expert))
        for rank, (name, load) in enumerate(zip(placement.engine_rank_G().tolist(), rank_load_G.tolist(), strict=True))
    ]
    note = f"{number(sends)} sends, rank imbalance {number(imbalance)}{f'; {busiest}' if busiest else ''}"
    nodes = [rows[node * shape[1] : (node + 1) * shape[1]] for node in range(shape[0])]
    return ShownLayer(placement.model.layer_ids[layer], note, nodes)
