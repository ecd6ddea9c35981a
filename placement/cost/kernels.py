"""Exact expected cost of one layer's map on many tokens (numba).

`totals` collects, over tokens and averaged over the homes: [0] distinct remote nodes, [1] distinct ranks on remote nodes,
[2] assignments served on remote nodes. `load_P` collects assignments per slot. Homes are node ids; -1 means unknown: the
mean over all nodes is taken. Where a copy is chosen by chance, copies are chosen independently for each expert, and
the expected number of distinct nodes or ranks is 1 - prod(1 - p) summed over them. `count_T` is how often each row occurs.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.cost.covers import MAX_COVERS, popcount, smallest_covers
from placement.cost.replica_choice import LOCAL_FIRST, MIN_NODES, UNIFORM
from placement.cost.tables import LayerTables

_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@nb.njit(cache=True, nogil=True)
def cost_single(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    home_T: npt.NDArray[np.int32],
    tables: LayerTables,
    totals: npt.NDArray[np.float64],
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
    seen_G = np.full(tables.num_ranks, -1, dtype=np.int64)
    top_k = ids_TK.shape[1]
    away = (tables.num_nodes - 1) / tables.num_nodes
    nodes, ranks, assignments = 0, 0, 0  # of tokens with a random home
    near_nodes, near_ranks, near_assignments = 0, 0, 0
    for t in range(ids_TK.shape[0]):
        home, times = home_T[t], count_T[t]
        mask = _ZERO
        distinct, outside, remote = 0, 0, 0
        for k in range(top_k):
            e = ids_TK[t, k]
            count_E[e] += times
            rank, node = rank_E[e], node_E[e]
            mask |= _ONE << np.uint64(node)
            fresh = seen_G[rank] != t
            seen_G[rank] = t
            distinct += fresh
            if node != home:
                outside += fresh
                remote += 1
        if home < 0:
            nodes += times * popcount(mask)
            ranks += times * distinct
            assignments += times * top_k
        else:
            near_nodes += times * popcount(mask & ~(_ONE << np.uint64(home)))
            near_ranks += times * outside
            near_assignments += times * remote
    totals[0] += nodes * away + near_nodes
    totals[1] += ranks * away + near_ranks
    totals[2] += assignments * away + near_assignments
    for e in range(num_experts):
        load_P[tables.slot_id[tables.slot_ptr_E[e]]] += count_E[e]


@nb.njit(cache=True, nogil=True)
def cost_replicated(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    home_T: npt.NDArray[np.int32],
    choice: int,
    tables: LayerTables,
    totals: npt.NDArray[np.float64],
    load_P: npt.NDArray[np.float64],
) -> None:
    """Experts may have several copies; `choice` is the replica choice."""
    top_k = ids_TK.shape[1]
    num_nodes = tables.num_nodes
    miss_N = np.ones(num_nodes)
    miss_G = np.ones(tables.num_ranks)
    open_K = np.empty(top_k, dtype=np.uint64)
    covers = np.empty(MAX_COVERS, dtype=np.uint64)
    for t in range(ids_TK.shape[0]):
        first, last = (0, num_nodes) if home_T[t] < 0 else (home_T[t], home_T[t] + 1)
        for home in range(first, last):
            home_bit = _ONE << np.uint64(home)
            found = 1
            if choice == MIN_NODES:
                num_open = 0
                for k in range(top_k):
                    host = tables.host_E[ids_TK[t, k]]
                    if host & home_bit == _ZERO:
                        open_K[num_open] = host
                        num_open += 1
                found = smallest_covers(open_K, num_open, home, num_nodes, covers)
            weight = count_T[t] / (found * (last - first))
            for c in range(found):
                for k in range(top_k):
                    e = ids_TK[t, k]
                    host = tables.host_E[e]
                    if choice == UNIFORM or (choice == LOCAL_FIRST and host & home_bit == _ZERO):
                        allowed = host
                    elif host & home_bit != _ZERO:
                        allowed = home_bit
                    else:
                        allowed = host & covers[c]
                    _serve(e, allowed, choice == MIN_NODES, home, weight, tables, totals, load_P, miss_N, miss_G)
                _distinct(ids_TK[t], home, weight, tables, totals, miss_N, miss_G)


@nb.njit(cache=True, nogil=True)
def _serve(
    e: int,
    allowed: np.uint64,
    node_first: bool,
    home: int,
    weight: float,
    tables: LayerTables,
    totals: npt.NDArray[np.float64],
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
            if node != home:
                totals[2] += weight * share
            for copy in range(s, end):
                part = share / (end - s)
                load_P[tables.slot_id[copy]] += weight * part
                miss_G[tables.slot_rank[copy]] *= 1.0 - part
        s = end


@nb.njit(cache=True, nogil=True)
def _distinct(
    ids_K: npt.NDArray[Any],
    home: int,
    weight: float,
    tables: LayerTables,
    totals: npt.NDArray[np.float64],
    miss_N: npt.NDArray[np.float64],
    miss_G: npt.NDArray[np.float64],
) -> None:
    """Add the expected distinct remote nodes and ranks, and set the scratch back to 1."""
    for k in range(ids_K.shape[0]):
        for s in range(tables.slot_ptr_E[ids_K[k]], tables.slot_ptr_E[ids_K[k] + 1]):
            node, rank = tables.slot_node[s], tables.slot_rank[s]
            if node != home:
                totals[0] += weight * (1.0 - miss_N[node])
                totals[1] += weight * (1.0 - miss_G[rank])
            miss_N[node] = 1.0
            miss_G[rank] = 1.0
