"""How evenly a map can share a given load at best, if every expert's load may be split over its slots at will."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linprog

from placement.core.cluster import Cluster
from placement.errors import MapError


def optimal_split(
    load_E: npt.NDArray[np.floating], phy2log_P: npt.NDArray[np.integer], cluster: Cluster
) -> tuple[npt.NDArray[np.float64], float]:
    """(share_P, imbalance): the part of its expert's load that each slot serves; the most loaded rank over the mean.

    No choice among replicas balances these loads better, whatever it sends over the network; an engine that draws
    copies at random splits evenly instead. A rank's load counts divided by its relative speed, and after what GPUs of a
    node share at run time. A linear program over
    the slots of experts that have several (HiGHS). Raises MapError where an expert has load but no slot.
    """
    cluster = cluster.balanced()
    load = np.asarray(load_E, dtype=np.float64)
    row = np.asarray(phy2log_P, dtype=np.int64)
    copies_E = np.bincount(row, minlength=len(load))
    homeless = np.flatnonzero((copies_E == 0) & (load > 0))
    if len(homeless):
        raise MapError(f"expert {homeless[0]} has load {load[homeless[0]]} but no slot; give every expert a slot")
    share_P = 1.0 / copies_E[row]
    mean = load.sum() / cluster.num_ranks
    if not mean > 0:
        return share_P, 1.0
    rank_P = cluster.rank_of_slot_P()
    free = np.flatnonzero((copies_E[row] > 1) & (load[row] > 0))
    split, expert_F = np.unique(row[free], return_inverse=True)
    if len(split):
        share_P[free] = _shares(load, row, rank_P, free, expert_F, len(split), mean, cluster)
    load_G = np.bincount(rank_P, weights=load[row] * share_P, minlength=cluster.num_ranks)
    return share_P, float((load_G / cluster.speed_G()).max() / mean)


def best_imbalance_L(
    load_LP: npt.NDArray[np.floating], phy2log_LP: npt.NDArray[np.integer], cluster: Cluster, num_experts: int
) -> npt.NDArray[np.float64]:
    """Rank imbalance of every layer, float64 [L], if what its slots serve were split over them by `optimal_split`."""
    return np.array(
        [
            optimal_split(np.bincount(row, load_P, num_experts).astype(np.float64), row, cluster)[1]
            for load_P, row in zip(load_LP, phy2log_LP, strict=True)
        ]
    )


def _shares(
    load_E: npt.NDArray[np.float64],
    row_P: npt.NDArray[np.int64],
    rank_P: npt.NDArray[np.int64],
    free_F: npt.NDArray[np.int64],
    expert_F: npt.NDArray[np.int64],
    num_split: int,
    mean: float,
    cluster: Cluster,
) -> npt.NDArray[np.float64]:
    """Shares of the slots `free_F`, that of the F-th slot in expert_F; the last variable is the imbalance."""
    num_ranks, num_free = cluster.num_ranks, len(free_F)
    speed_G = cluster.speed_G()
    part_F = load_E[row_P[free_F]] / mean
    fixed_P = np.where(np.isin(np.arange(len(row_P)), free_F), 0.0, load_E[row_P] / mean)
    fixed_P /= np.bincount(row_P, minlength=len(load_E))[row_P]
    ranks = np.zeros((num_ranks, num_free + 1))
    ranks[rank_P[free_F], np.arange(num_free)] = part_F
    ranks[:, num_free] = -speed_G
    whole = np.zeros((num_split, num_free + 1))
    whole[expert_F, np.arange(num_free)] = 1.0
    answer = linprog(
        np.append(np.zeros(num_free), 1.0),
        A_ub=ranks,
        b_ub=-np.bincount(rank_P, weights=fixed_P, minlength=num_ranks),
        A_eq=whole,
        b_eq=np.ones(num_split),
        method="highs",
    )
    share_F = np.clip(np.asarray(answer.x)[:num_free], 0.0, None)  # always feasible: equal shares are
    total = np.bincount(expert_F, weights=share_F, minlength=num_split)
    return np.asarray(share_F / total[expert_F])
