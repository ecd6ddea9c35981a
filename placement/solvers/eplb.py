"""DeepSeek's expert-parallel load balancer, as engines run it: greedy replicas, greedy packing; it sees only loads.

The algorithm is that of deepseek-ai/EPLB (eplb.py), written anew. Hierarchical (groups of experts to nodes
first) if the model routes by groups that the nodes divide, else global.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.solvers.moves import separate_copies
from placement.solvers.problem import LayerProblem, LayerSolution
from placement.support.kernel import inner_kernel, kernel

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def eplb_map(
    load_E: npt.NDArray[np.floating], *, num_slots: int, num_groups: int, num_nodes: int, num_ranks: int
) -> Ints:
    """Map of one layer, int64 [P]. It may hold an expert twice on a rank, as the original does."""
    load = np.ascontiguousarray(load_E, dtype=np.float64)
    return np.asarray(eplb_row(load, num_slots, num_groups, num_nodes, num_ranks))


@kernel
def eplb_row(load_E: Floats, num_slots: int, num_groups: int, num_nodes: int, num_ranks: int) -> Ints:
    """`eplb_map` for compiled code. Loops, not numpy's functions: those take numba seconds to compile."""
    if num_groups % num_nodes:
        num_groups, num_nodes = 1, 1  # the global policy
    group_size = len(load_E) // num_groups
    experts_per_node = len(load_E) // num_nodes
    slots_per_node = num_slots // num_nodes
    slots_per_rank = num_slots // num_ranks

    load_G = np.zeros(num_groups)
    for e in range(len(load_E)):
        load_G[e // group_size] += load_E[e]
    node_G, place_G = balanced_packing(load_G, num_nodes)
    mid2log = np.empty(len(load_E), dtype=np.int64)
    for group in range(num_groups):
        first = (node_G[group] * (num_groups // num_nodes) + place_G[group]) * group_size
        for i in range(group_size):
            mid2log[first + i] = group * group_size + i

    row = np.empty(num_slots, dtype=np.int64)
    load_own, each_own = np.empty(experts_per_node), np.empty(slots_per_node)
    for node in range(num_nodes):
        own = mid2log[node * experts_per_node : (node + 1) * experts_per_node]
        for i in range(experts_per_node):
            load_own[i] = load_E[own[i]]
        phy2own, count = replicate_experts(load_own, slots_per_node)
        for p in range(slots_per_node):
            each_own[p] = load_own[phy2own[p]] / count[phy2own[p]]
        rank, place = balanced_packing(each_own, num_ranks // num_nodes)
        for p in range(slots_per_node):
            row[node * slots_per_node + rank[p] * slots_per_rank + place[p]] = own[phy2own[p]]
    return row


@kernel
def balanced_packing(weight_X: Floats, num_packs: int) -> tuple[Ints, Ints]:
    """Heaviest first into the lightest pack with room: (pack, place in the pack) of every item; equal pack sizes."""
    num_items = len(weight_X)
    size = num_items // num_packs
    pack_X, place_X = np.empty(num_items, dtype=np.int64), np.empty(num_items, dtype=np.int64)
    for item in range(num_items):
        pack_X[item], place_X[item] = item, 0
    if size == 1:
        return pack_X, place_X
    total, held = np.zeros(num_packs), np.zeros(num_packs, dtype=np.int64)
    for item in falling_order(weight_X):
        pack = -1
        for other in range(num_packs):
            if held[other] < size and (pack < 0 or total[other] < total[pack]):
                pack = other
        pack_X[item], place_X[item] = pack, held[pack]
        total[pack] += weight_X[item]
        held[pack] += 1
    return pack_X, place_X


@inner_kernel
def falling_order(weight_X: Floats) -> Ints:
    """The stable `np.argsort(-weight_X)` by merges of sorted runs: numba's own takes a second or two to compile."""
    size, width = len(weight_X), 1
    order, merged = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
    for x in range(size):
        order[x] = x
    while width < size:
        for start in range(0, size, 2 * width):
            middle, stop = min(start + width, size), min(start + 2 * width, size)
            i, j = start, middle
            for x in range(start, stop):
                if i < middle and (j == stop or weight_X[order[i]] >= weight_X[order[j]]):
                    merged[x] = order[i]
                    i += 1
                else:
                    merged[x] = order[j]
                    j += 1
        order, merged = merged, order
        width *= 2
    return order


@inner_kernel
def replicate_experts(weight_E: Floats, num_slots: int) -> tuple[Ints, Ints]:
    """One more copy for the expert with the highest load per copy, until the slots are full: (phy2log, copies)."""
    count, each_E = np.empty(len(weight_E), dtype=np.int64), np.empty(len(weight_E))
    phy2log = np.empty(num_slots, dtype=np.int64)
    for e in range(len(weight_E)):
        count[e], each_E[e], phy2log[e] = 1, weight_E[e], e
    for slot in range(len(weight_E), num_slots):
        hottest = 0
        for e in range(1, len(each_E)):
            hottest = e if each_E[e] > each_E[hottest] else hottest
        phy2log[slot] = hottest
        count[hottest] += 1
        each_E[hottest] = weight_E[hottest] / count[hottest]
    return phy2log, count


class Eplb:
    name = "eplb"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        cluster = problem.cluster
        phy2log = eplb_map(
            problem.load_E,
            num_slots=cluster.num_slots,
            num_groups=problem.num_groups or 1,
            num_nodes=cluster.num_nodes,
            num_ranks=cluster.num_ranks,
        )
        return LayerSolution(
            solver=self.name, phy2log_P=separate_copies(cluster.from_engine(phy2log), cluster, problem.load_E)
        )
