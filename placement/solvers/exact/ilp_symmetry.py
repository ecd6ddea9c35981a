"""Maps that differ only in the names of nodes and ranks score the same: the program keeps one of them.

Nodes whose ranks have the same speeds are alike, and so are ranks of one speed on a node. Among those alike the one
with the lowest expert comes first. With redundant experts only the first of all is fixed: it holds expert 0.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.solvers.problem import LayerProblem

Grid = list[list[Any]]
FULL_ORDER = 64  # experts up to which every expert is part of the order; the rows grow with E^2


def alike_nodes(cluster: Cluster) -> list[list[int]]:
    """Nodes in groups within which they may be exchanged."""
    groups: dict[tuple[float, ...], list[int]] = {}
    for node, speeds in enumerate(cluster.speed_G().reshape(cluster.num_nodes, -1).tolist()):
        groups.setdefault(tuple(sorted(speeds)), []).append(node)
    return list(groups.values())


def alike_ranks(cluster: Cluster, node: int) -> list[list[int]]:
    """Ranks of a node in groups of one speed; groups by ascending speed."""
    groups: dict[float, list[int]] = {}
    speed_G = cluster.speed_G()
    first = node * cluster.gpus_per_node
    for rank in range(first, first + cluster.gpus_per_node):
        groups.setdefault(float(speed_G[rank]), []).append(rank)
    return [groups[speed] for speed in sorted(groups)]


def break_symmetry(model: Any, problem: LayerProblem, x_EG: Grid, z_EN: Grid) -> None:
    cluster = problem.cluster
    if problem.num_redundant:
        if len(alike_nodes(cluster)) == 1 and len(alike_ranks(cluster, 0)) == 1:
            model.add(x_EG[0][0] == 1)
        return
    ordered = range(problem.num_experts if problem.num_experts <= FULL_ORDER else 2)
    chains = [(z_EN, group) for group in alike_nodes(cluster)]
    chains += [(x_EG, group) for node in range(cluster.num_nodes) for group in alike_ranks(cluster, node)]
    for held, group in chains:
        for before, after in pairwise(group):
            for e in ordered:  # expert e may be on `after` only if a lower one is on `before`
                model.add_bool_or([held[e][after].Not(), *(held[lower][before] for lower in range(e))])


def canonical_map(phy2log_P: npt.NDArray[np.int32], problem: LayerProblem) -> npt.NDArray[np.int32]:
    """The map among those alike that the program keeps; same score."""
    cluster = problem.cluster
    old_GS = np.asarray(phy2log_P).reshape(cluster.num_ranks, cluster.slots_per_gpu)
    new_GS = old_GS.copy()
    for nodes in alike_nodes(cluster):
        old_NS = old_GS.reshape(cluster.num_nodes, -1)
        from_nodes = sorted(nodes, key=lambda node: (int(old_NS[node].min()), node))
        for source, target in zip(from_nodes, nodes, strict=True):
            for old, new in zip(alike_ranks(cluster, source), alike_ranks(cluster, target), strict=True):
                by_lowest = sorted(old, key=lambda rank: (int(old_GS[rank].min()), rank))
                new_GS[new] = old_GS[by_lowest]
    return new_GS.ravel()
