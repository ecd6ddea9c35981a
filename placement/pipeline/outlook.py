"""What a map that is balanced for every part would bring, from the loads of parts alone: some 0.02 s a layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.core.placement import Placement
from placement.cost.evaluation import Evaluation
from placement.pipeline.part_figures import Answers, PartFigures
from placement.solvers.balancing.even_rows import WORST, even_row

MOVES = 20_000  # of a layer: enough to tell what could be had


def worst_if_balanced(figures: PartFigures, name: str, placement: Placement) -> float:
    """Rank imbalance of the worst part, mean over layers, of a map fitted to the loads of all parts.

    Copies serve even shares. The figure is of held-out requests where those of the parts are shown.

    Args:
        figures: the parts, measured with some maps.
        name: of one of the maps, `placement`, which says whose the loads of slots are.
    """
    _, shown = figures.shown()
    fit_WLE, judge_WLE = (_shares(answers, name, placement) for answers in (figures.train, shown))
    cluster = figures.cluster.balanced()
    experts, ranks = placement.model.num_experts, cluster.num_ranks
    imbalance_WL = np.empty(judge_WLE.shape[:2])
    for layer in range(judge_WLE.shape[1]):
        row = even_row(fit_WLE[:, layer], cluster, power=WORST, moves=MOVES, seed=figures.options.seed + layer)
        each_WE = judge_WLE[:, layer] / np.bincount(row, minlength=experts)
        load_WG = each_WE[:, row].reshape(len(each_WE), ranks, -1).sum(axis=2) / cluster.speed_G()
        imbalance_WL[:, layer] = load_WG.max(axis=1) * ranks
    return float(imbalance_WL.mean(axis=1).max())


def _shares(answers: Answers, name: str, placement: Placement) -> npt.NDArray[np.float64]:
    """Share of the load of each expert under every part, float64 [W, L, E]."""
    return np.stack([_share_LE(measured[name], placement) for measured in answers])


def _share_LE(evaluation: Evaluation, placement: Placement) -> npt.NDArray[np.float64]:
    load_LE = np.zeros((len(evaluation.load_LP), placement.model.num_experts))
    for load_E, row, load_P in zip(load_LE, placement.phy2log_LP, evaluation.load_LP, strict=True):
        np.add.at(load_E, row, load_P)
    total_L1 = load_LE.sum(axis=1, keepdims=True)
    even_LE = np.full_like(load_LE, 1 / load_LE.shape[1])
    return np.asarray(np.divide(load_LE, total_L1, out=even_LE, where=total_L1 > 0))
