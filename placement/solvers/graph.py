"""Balanced partition of the co-activation graph into nodes, as most published placements do (networkx).

Recursive Kernighan-Lin bisection, then packing onto the ranks of a node by load. It sees pairs of experts, not top-k
sets. With redundant experts the hottest get further copies first; each copy is a vertex that takes its share of the
expert's co-activation, and copies of an expert repel each other.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.solvers.moves import capped_copies, separate_copies
from placement.solvers.problem import LayerProblem, LayerSolution

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

PASSES = 4  # passes of Kernighan-Lin for each bisection: the first ones bring nearly all of the gain


class Graph:
    """Of two edge weights, plain co-activation and that divided by the experts' loads, the better map wins."""

    name = "graph"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        cluster = problem.cluster
        expert_P, copies_E = capped_copies(problem.load_E, cluster)
        load_P = (problem.load_E / copies_E)[expert_P]
        plain_PP = problem.coact_EE[np.ix_(expert_P, expert_P)] / np.outer(copies_E[expert_P], copies_E[expert_P])
        scale_P = 1.0 / np.sqrt(np.maximum(load_P, 1e-3 / cluster.num_slots))
        best, best_score, stopped = None, None, False
        for weight_PP in (plain_PP, plain_PP * np.outer(scale_P, scale_P)):
            if best is not None and problem.out_of_time():
                stopped = True
                break
            weight_PP = weight_PP / max(float(weight_PP.max()), 1e-300)
            np.copyto(weight_PP, -1.0, where=expert_P[:, None] == expert_P)
            rng = np.random.default_rng(problem.seed)
            parts = _partition(
                rng.permutation(cluster.num_slots), weight_PP, cluster.num_nodes, cluster.slots_per_node, rng
            )
            row = separate_copies(expert_P[_pack(parts, load_P, cluster)], cluster, problem.load_E)
            score = problem.score(row)
            if best is None or best_score is None or score.better_than(best_score):
                best, best_score = row, score
        assert best is not None
        return LayerSolution(solver=self.name, phy2log_P=best, status="limit" if stopped else "feasible")


def _partition(members: Ints, weight_PP: Floats, parts: int, size: int, rng: np.random.Generator) -> list[Ints]:
    """Split into `parts` groups of `size`; the sides of a bisection are in proportion to the parts that they get."""
    if parts == 1:
        return [np.sort(members)]
    half = parts // 2
    order = np.sort(members)
    inner_PP = np.triu(weight_PP[np.ix_(order, order)], 1)
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(len(order)))
    first, second = np.nonzero(inner_PP)
    graph.add_weighted_edges_from(zip(first.tolist(), second.tolist(), inner_PP[first, second].tolist(), strict=True))
    shuffled = rng.permutation(len(order)).tolist()
    start = (set(shuffled[: half * size]), set(shuffled[half * size :]))
    sides = nx.community.kernighan_lin_bisection(graph, start, max_iter=PASSES)
    smaller, larger = sorted((np.array(sorted(side), dtype=np.int64) for side in sides), key=len)
    groups = []
    for side, share in ((smaller, half), (larger, parts - half)):
        groups += _partition(order[side], weight_PP, share, size, rng)
    return groups


def _pack(parts: list[Ints], load_P: Floats, cluster: Cluster) -> Ints:
    """Heavy parts to fast nodes; on a node the heaviest copy first, to the rank that it loads least. By slot."""
    speed_NG = cluster.speed_G().reshape(cluster.num_nodes, cluster.gpus_per_node)
    fast_first = np.argsort(-speed_NG.sum(axis=1), kind="stable")
    heavy_first = np.argsort([-load_P[part].sum() for part in parts], kind="stable")
    slots = np.empty((cluster.num_nodes, cluster.gpus_per_node, cluster.slots_per_gpu), dtype=np.int64)
    for node, part in zip(fast_first.tolist(), heavy_first.tolist(), strict=True):
        held, total = np.zeros(cluster.gpus_per_node, dtype=np.int64), np.zeros(cluster.gpus_per_node)
        members = parts[part]
        for copy in members[np.argsort(-load_P[members], kind="stable")]:
            after = np.where(held < cluster.slots_per_gpu, (total + load_P[copy]) / speed_NG[node], np.inf)
            rank = int(np.argmin(after))
            slots[node, rank, held[rank]] = copy
            held[rank] += 1
            total[rank] += load_P[copy]
    return slots.ravel()
