"""What one layer's map sends and serves on many tokens, exact in expectation (numba).

`traffic` collects copies by home node and destination, `load_P` assignments per slot. `count_T` is how often each row
occurs. Homes are node ids; -1 means unknown: every node is the home of an equal share. Where a copy is chosen by
chance, copies are chosen independently for each expert, and the expected number of distinct nodes or ranks is
1 - prod(1 - p) summed over them.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.cost.covers import MAX_COVERS, popcount, smallest_covers
from placement.cost.replica_choice import MIN_NODES, UNIFORM
from placement.cost.tables import LayerTables
from placement.cost.traffic import Traffic

_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@nb.njit(cache=True, nogil=True)
def cost_single(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    home_T: npt.NDArray[np.int32],
    tables: LayerTables,
    traffic: Traffic,
    load_P: npt.NDArray[np.float64],
) -> None:
    """Every expert has one copy, so there is nothing to choose: a count."""
    num_experts = tables.host_E.shape[0]
    rank_E = np.empty(num_experts, dtype=np.int32)
    node_E = np.empty(num_experts, dtype=np.int32)
    for e in range(num_experts):
        rank_E[e] = tables.slot_rank[tables.slot_ptr_E[e]]
        node_E[e] = tables.slot_node[tables.slot_ptr_E[e]]
    count_E = np.zeros(num_experts, dtype=np.int64)
    # one row a home, and a last one for tokens whose home is unknown
    node_HN = np.zeros((tables.num_nodes + 1, tables.num_nodes), dtype=np.int64)
    rank_HG = np.zeros((tables.num_nodes + 1, tables.num_ranks), dtype=np.int64)
    assignment_HG = np.zeros((tables.num_nodes + 1, tables.num_ranks), dtype=np.int64)
    seen_G = np.full(tables.num_ranks, -1, dtype=np.int64)
    for t in range(ids_TK.shape[0]):
        row, times = home_T[t], count_T[t]
        if row < 0:
            row = tables.num_nodes
        mask = _ZERO
        for k in range(ids_TK.shape[1]):
            e = ids_TK[t, k]
            count_E[e] += times
            rank, bit = rank_E[e], _ONE << np.uint64(node_E[e])
            assignment_HG[row, rank] += times
            if seen_G[rank] != t:
                seen_G[rank] = t
                rank_HG[row, rank] += times
            if mask & bit == _ZERO:
                mask |= bit
                node_HN[row, node_E[e]] += times
    for h in range(tables.num_nodes):
        for n in range(tables.num_nodes):
            traffic.node_HN[h, n] += node_HN[h, n] + node_HN[tables.num_nodes, n] / tables.num_nodes
        for g in range(tables.num_ranks):
            traffic.rank_HG[h, g] += rank_HG[h, g] + rank_HG[tables.num_nodes, g] / tables.num_nodes
            traffic.assignment_HG[h, g] += assignment_HG[h, g] + assignment_HG[tables.num_nodes, g] / tables.num_nodes
    for e in range(num_experts):
        load_P[tables.slot_id[tables.slot_ptr_E[e]]] += count_E[e]


@nb.njit(cache=True, nogil=True)
def cost_replicated(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    home_T: npt.NDArray[np.int32],
    choice: int,
    tables: LayerTables,
    traffic: Traffic,
    load_P: npt.NDArray[np.float64],
) -> None:
    """Experts may have several copies; `choice` is the replica choice.

    Experts with one copy are booked once a token; only those with several are looked at again for each home.
    """
    top_k = ids_TK.shape[1]
    num_nodes = tables.num_nodes
    several_K = np.empty(top_k, dtype=np.int64)
    open_K = np.empty(top_k, dtype=np.uint64)
    covers = np.empty(MAX_COVERS, dtype=np.uint64)
    miss_N = np.ones(num_nodes)
    miss_G = np.ones(tables.num_ranks)
    seen_G = np.full(tables.num_ranks, -1, dtype=np.int64)
    anywhere_N = np.zeros(num_nodes)  # of tokens whose home is unknown and does not matter
    anywhere_G = np.zeros(tables.num_ranks)
    assigned_G = np.zeros(tables.num_ranks)
    for t in range(ids_TK.shape[0]):
        random_home = home_T[t] < 0
        row_N, row_G, served_G = anywhere_N, anywhere_G, assigned_G
        if not random_home:
            row_N, row_G = traffic.node_HN[home_T[t]], traffic.rank_HG[home_T[t]]
            served_G = traffic.assignment_HG[home_T[t]]
        forced = _ZERO
        num_several = 0
        for k in range(top_k):
            e = np.int64(ids_TK[t, k])
            first = tables.slot_ptr_E[e]
            if tables.slot_ptr_E[e + 1] - first > 1:
                several_K[num_several] = e
                num_several += 1
                continue
            node, rank = tables.slot_node[first], tables.slot_rank[first]
            load_P[tables.slot_id[first]] += count_T[t]
            served_G[rank] += count_T[t]
            if seen_G[rank] != t:
                seen_G[rank] = t
                row_G[rank] += count_T[t]
            if forced & (_ONE << np.uint64(node)) == _ZERO:
                forced |= _ONE << np.uint64(node)
                row_N[node] += count_T[t]
        if num_several == 0:
            continue
        if random_home and choice == UNIFORM:  # the choice does not see the home: one pass for all homes
            for k in range(num_several):
                e = several_K[k]
                _serve(e, tables.host_E[e], False, count_T[t], tables, served_G, load_P, miss_N, miss_G)
            _distinct(several_K, num_several, forced, seen_G, t, count_T[t], tables, row_N, row_G, miss_N, miss_G)
            continue
        first_home, last_home = (0, num_nodes) if random_home else (home_T[t], home_T[t] + 1)
        for home in range(first_home, last_home):
            home_bit = _ONE << np.uint64(home)
            row_N, row_G, served_G = traffic.node_HN[home], traffic.rank_HG[home], traffic.assignment_HG[home]
            found = 1
            if choice == MIN_NODES:
                num_open = 0
                for k in range(num_several):
                    host = tables.host_E[several_K[k]]
                    if host & (forced | home_bit) == _ZERO:
                        open_K[num_open] = host
                        num_open += 1
                found = smallest_covers(open_K, num_open, home, num_nodes, covers)
            weight = count_T[t] / (found * (last_home - first_home))
            for c in range(found):
                for k in range(num_several):
                    e = several_K[k]
                    host = tables.host_E[e]
                    if choice != UNIFORM and host & home_bit != _ZERO:
                        allowed = home_bit
                    elif choice == MIN_NODES:
                        allowed = host & (forced | covers[c])
                    else:
                        allowed = host
                    _serve(e, allowed, choice == MIN_NODES, weight, tables, served_G, load_P, miss_N, miss_G)
                _distinct(several_K, num_several, forced, seen_G, t, weight, tables, row_N, row_G, miss_N, miss_G)
    for h in range(num_nodes):
        traffic.node_HN[h] += anywhere_N / num_nodes
        traffic.rank_HG[h] += anywhere_G / num_nodes
        traffic.assignment_HG[h] += assigned_G / num_nodes


@nb.njit(cache=True, nogil=True)
def _serve(
    e: int,
    allowed: np.uint64,
    node_first: bool,
    weight: float,
    tables: LayerTables,
    served_G: npt.NDArray[np.float64],
    load_P: npt.NDArray[np.float64],
    miss_N: npt.NDArray[np.float64],
    miss_G: npt.NDArray[np.float64],
) -> None:
    """Share one assignment over the copies of `e` on allowed nodes: evenly over nodes first, or over all copies."""
    start, stop = tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]
    usable = 0
    for s in range(start, stop):
        if allowed >> np.uint64(tables.slot_node[s]) & _ONE:
            usable += 1
    num_allowed = popcount(allowed)
    s = start
    while s < stop:  # copies of an expert are in slot order, so those of a node lie together
        node = tables.slot_node[s]
        end = s
        while end < stop and tables.slot_node[end] == node:
            end += 1
        if allowed >> np.uint64(node) & _ONE:
            share = 1.0 / num_allowed if node_first else (end - s) / usable
            miss_N[node] *= 1.0 - share
            part = share / (end - s)
            for copy in range(s, end):
                load_P[tables.slot_id[copy]] += weight * part
                served_G[tables.slot_rank[copy]] += weight * part
                miss_G[tables.slot_rank[copy]] *= 1.0 - part
        s = end


@nb.njit(cache=True, nogil=True)
def _distinct(
    several_K: npt.NDArray[np.int64],
    num_several: int,
    forced: np.uint64,
    seen_G: npt.NDArray[np.int64],
    t: int,
    weight: float,
    tables: LayerTables,
    row_N: npt.NDArray[np.float64],
    row_G: npt.NDArray[np.float64],
    miss_N: npt.NDArray[np.float64],
    miss_G: npt.NDArray[np.float64],
) -> None:
    """Add the expected distinct nodes and ranks beyond those of single copies; set the scratch back to 1."""
    for k in range(num_several):
        e = several_K[k]
        for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
            node, rank = tables.slot_node[s], tables.slot_rank[s]
            if not forced >> np.uint64(node) & _ONE:
                row_N[node] += weight * (1.0 - miss_N[node])
            if seen_G[rank] != t:
                row_G[rank] += weight * (1.0 - miss_G[rank])
            miss_N[node] = 1.0
            miss_G[rank] = 1.0
