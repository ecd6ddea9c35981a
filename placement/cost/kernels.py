"""Exact expected cost of one layer's map on many tokens (numba).

`totals` collects, over tokens and averaged over the homes: [0] distinct remote nodes, [1] distinct ranks on remote
nodes, [2] assignments served on remote nodes. `load_P` collects assignments per slot. `count_T` is how often each row
occurs. Homes are node ids; -1 means unknown: the mean over all nodes is taken. Where a copy is chosen by chance, copies
are chosen independently for each expert, and the expected number of distinct nodes or ranks is 1 - prod(1 - p) summed
over them.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.cost.covers import MAX_COVERS, popcount, smallest_covers
from placement.cost.replica_choice import MIN_NODES, UNIFORM
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
    """Experts may have several copies; `choice` is the replica choice.

    Experts with one copy are booked once a token; only those with several are looked at again for each home.
    """
    top_k = ids_TK.shape[1]
    num_nodes = tables.num_nodes
    away = (num_nodes - 1) / num_nodes
    several_K = np.empty(top_k, dtype=np.int64)
    open_K = np.empty(top_k, dtype=np.uint64)
    covers = np.empty(MAX_COVERS, dtype=np.uint64)
    miss_N = np.ones(num_nodes)
    miss_G = np.ones(tables.num_ranks)
    seen_G = np.full(tables.num_ranks, -1, dtype=np.int64)
    ranks_N = np.zeros(num_nodes, dtype=np.int64)
    singles_N = np.zeros(num_nodes, dtype=np.int64)
    for t in range(ids_TK.shape[0]):
        forced = _ZERO
        ranks, singles, num_several = 0, 0, 0
        for k in range(top_k):
            e = np.int64(ids_TK[t, k])
            first = tables.slot_ptr_E[e]
            if tables.slot_ptr_E[e + 1] - first > 1:
                several_K[num_several] = e
                num_several += 1
                continue
            node, rank = tables.slot_node[first], tables.slot_rank[first]
            forced |= _ONE << np.uint64(node)
            load_P[tables.slot_id[first]] += count_T[t]
            singles += 1
            singles_N[node] += 1
            if seen_G[rank] != t:
                seen_G[rank] = t
                ranks += 1
                ranks_N[node] += 1
        random_home = home_T[t] < 0
        if random_home:
            totals[0] += count_T[t] * popcount(forced) * away
            totals[1] += count_T[t] * ranks * away
            totals[2] += count_T[t] * singles * away
        else:
            home_bit = _ONE << np.uint64(home_T[t])
            totals[0] += count_T[t] * popcount(forced & ~home_bit)
            totals[1] += count_T[t] * (ranks - ranks_N[home_T[t]])
            totals[2] += count_T[t] * (singles - singles_N[home_T[t]])
        for k in range(top_k):
            node = tables.slot_node[tables.slot_ptr_E[ids_TK[t, k]]]
            ranks_N[node] = 0
            singles_N[node] = 0
        if num_several == 0:
            continue
        if random_home and choice == UNIFORM:  # the choice does not see the home: one pass for all homes
            for k in range(num_several):
                e = several_K[k]
                _serve(e, tables.host_E[e], False, -1, count_T[t], away, tables, totals, load_P, miss_N, miss_G)
            _distinct(several_K, num_several, forced, seen_G, t, -1, count_T[t] * away, tables, totals, miss_N, miss_G)
            continue
        first_home, last_home = (0, num_nodes) if random_home else (home_T[t], home_T[t] + 1)
        for home in range(first_home, last_home):
            home_bit = _ONE << np.uint64(home)
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
                    _serve(e, allowed, choice == MIN_NODES, home, weight, 1.0, tables, totals, load_P, miss_N, miss_G)
                _distinct(several_K, num_several, forced, seen_G, t, home, weight, tables, totals, miss_N, miss_G)


@nb.njit(cache=True, nogil=True)
def _serve(
    e: int,
    allowed: np.uint64,
    node_first: bool,
    home: int,
    weight: float,
    away: float,
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
                totals[2] += weight * away * share
            for copy in range(s, end):
                part = share / (end - s)
                load_P[tables.slot_id[copy]] += weight * part
                miss_G[tables.slot_rank[copy]] *= 1.0 - part
        s = end


@nb.njit(cache=True, nogil=True)
def _distinct(
    several_K: npt.NDArray[np.int64],
    num_several: int,
    forced: np.uint64,
    seen_G: npt.NDArray[np.int64],
    t: int,
    home: int,
    weight: float,
    tables: LayerTables,
    totals: npt.NDArray[np.float64],
    miss_N: npt.NDArray[np.float64],
    miss_G: npt.NDArray[np.float64],
) -> None:
    """Add the expected distinct remote nodes and ranks beyond those of single copies; set the scratch back to 1."""
    for k in range(num_several):
        e = several_K[k]
        for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
            node, rank = tables.slot_node[s], tables.slot_rank[s]
            if node != home:
                if not forced >> np.uint64(node) & _ONE:
                    totals[0] += weight * (1.0 - miss_N[node])
                if seen_G[rank] != t:
                    totals[1] += weight * (1.0 - miss_G[rank])
            miss_N[node] = 1.0
            miss_G[rank] = 1.0
