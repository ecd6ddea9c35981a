"""Sends and loads of one layer's map under `min-nodes` where homes are random and all links are alike (numba).

Then only how many copies leave counts, not from where to where, and a token's homes fall into few classes: covers of
its experts differ only between homes that host different ones of its open experts. `cost_replicated` knows any links.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.cost.covers import COUNT_0, MAX_COVERS, pivot_of, popcount, smallest_covers
from placement.cost.lookup_tables import LayerTables, copies_beside
from placement.cost.sets import set_size
from placement.cost.traffic import Traffic
from placement.support.kernel import inner_kernel, kernel

_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@kernel
def cost_min_nodes(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    tables: LayerTables,
    traffic: Traffic,
    load_P: npt.NDArray[np.float64],
) -> None:
    """Add copies and assignments that leave to `traffic.remote_3`, and assignments per slot to `load_P`.

    A token's experts with one slot force their nodes; of the others those that no forced node hosts are open. Homes
    are looked at by cells: those of one cell host the same open experts, so that they choose alike.
    """
    top_k, num_nodes, num_experts = ids_TK.shape[1], tables.num_nodes, tables.host_E.shape[0]
    all_nodes = ~_ZERO >> np.uint64(64 - num_nodes)
    several_K = np.empty(top_k, dtype=np.int64)
    host_K, open_K, left_K = np.empty(top_k, np.uint64), np.empty(top_k, np.uint64), np.empty(top_k, np.uint64)
    covers = np.empty(MAX_COVERS, dtype=np.uint64)
    seen_G = np.full(tables.num_ranks, -1, dtype=np.int64)  # 2t: by an expert with one slot, 2t + 1: by another
    miss_G = np.ones(tables.num_ranks)
    count_E = np.zeros(num_experts, dtype=np.int64)
    nodes, ranks, assignments = 0.0, 0.0, 0.0  # of all homes together
    for t in range(ids_TK.shape[0]):
        size, forced, num_several, single_ranks = set_size(ids_TK[t]), _ZERO, 0, 0
        for k in range(size):
            e = np.int64(ids_TK[t, k])
            count_E[e] += count_T[t]
            first = tables.slot_ptr_E[e]
            if tables.slot_ptr_E[e + 1] - first > 1:
                several_K[num_several] = e
                host_K[num_several] = tables.host_E[e]
                num_several += 1
                continue
            forced |= tables.host_E[e]
            if seen_G[tables.slot_rank[first]] != 2 * t:
                seen_G[tables.slot_rank[first]] = 2 * t
                single_ranks += 1
        several_M, host_M = several_K[:num_several], host_K[:num_several]
        away = popcount(forced) * (num_nodes - 1.0)
        away_ranks = single_ranks * (num_nodes - 1.0)
        away_assignments = (size - num_several) * (num_nodes - 1.0)
        hosts, reached, num_open = _ZERO, _ZERO, 0
        for host in host_M:
            hosts |= host
            away_assignments += num_nodes - popcount(host)
            if host & forced == _ZERO:
                open_K[num_open] = host
                reached |= host
                num_open += 1
        crowded = num_several > 0 and _share_ranks(several_M, tables, seen_G, t)
        if not crowded:
            away_ranks += away_assignments - (size - num_several) * (num_nodes - 1.0)
        pivot = pivot_of(ids_TK[t, :size], num_nodes)
        others = hosts if crowded else reached  # homes beside those that choose as if they hosted nothing
        cell, first_home = all_nodes & ~others, _ZERO
        while num_several > 0:
            num_left = COUNT_0
            for i in range(num_open):
                if open_K[i] & first_home == _ZERO:
                    left_K[num_left] = open_K[i]
                    num_left += 1
            found = smallest_covers(left_K, num_left, pivot, num_nodes, covers) if cell != _ZERO else 0
            for c in range(found):
                allowed, weight = forced | covers[c], 1.0 / found
                away += weight * visited_nodes(host_M, forced, covers[c], cell)
                _serve(several_M, host_M, allowed, cell, weight * count_T[t] / num_nodes, tables, load_P)
                if crowded:
                    away_ranks += (
                        weight
                        * popcount(cell)
                        * _visited_ranks(several_M, host_M, allowed, first_home, tables, seen_G, t, miss_G)
                    )
            if others == _ZERO:
                break
            first_home = others & (~others + _ONE)
            cell = first_home
            if not crowded:
                cell = others
                for i in range(num_open):
                    cell &= open_K[i] if open_K[i] & first_home != _ZERO else ~open_K[i]
            others &= ~cell
        nodes += count_T[t] * away
        ranks += count_T[t] * away_ranks
        assignments += count_T[t] * away_assignments
    traffic.remote_3[0] += nodes / num_nodes
    traffic.remote_3[1] += ranks / num_nodes
    traffic.remote_3[2] += assignments / num_nodes
    for expert in range(num_experts):
        _serve_at_home(expert, int(count_E[expert]), tables, load_P)


@inner_kernel
def _share_ranks(several_M: npt.NDArray[np.int64], tables: LayerTables, seen_G: npt.NDArray[np.int64], t: int) -> bool:
    """True if two of the token's experts have copies on one rank, so that it may get one copy for both."""
    shared = False
    for e in several_M:
        for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
            seen = seen_G[tables.slot_rank[s]]
            if seen == 2 * t or seen == 2 * t + 1:
                shared = True
            else:
                seen_G[tables.slot_rank[s]] = 2 * t + 1
    return shared


@inner_kernel
def visited_nodes(host_M: npt.NDArray[np.uint64], forced: np.uint64, cover: np.uint64, cell: np.uint64) -> float:
    """Expected nodes that are visited beside the forced ones, summed over the homes of the cell."""
    sure = _ZERO
    for host in host_M:
        choices = host & cover
        if host & (forced | cell) == _ZERO and choices & (choices - _ONE) == _ZERO:
            sure |= choices
    total = float(popcount(cell) * popcount(cover & sure))
    unsure = cover & ~sure  # only greedy covers have a node that no expert needs
    while unsure != _ZERO:
        node = unsure & (~unsure + _ONE)
        unsure ^= node
        homes = cell
        while homes != _ZERO:
            home = homes & (~homes + _ONE)
            homes ^= home
            miss = 1.0
            for host in host_M:
                if host & home == _ZERO and host & node != _ZERO:
                    miss *= 1.0 - 1.0 / popcount(host & (forced | cover))
            total += 1.0 - miss
    return total


@inner_kernel
def _visited_ranks(
    several_M: npt.NDArray[np.int64],
    host_M: npt.NDArray[np.uint64],
    allowed: np.uint64,
    home: np.uint64,
    tables: LayerTables,
    seen_G: npt.NDArray[np.int64],
    t: int,
    miss_G: npt.NDArray[np.float64],
) -> float:
    """Expected remote ranks that are visited beside those of experts with one slot; `miss_G` is 1 before and after."""
    total = 0.0
    for i in range(several_M.shape[0]):
        if host_M[i] & home == _ZERO:
            share = 1.0 / popcount(host_M[i] & allowed)
            for s in range(tables.slot_ptr_E[several_M[i]], tables.slot_ptr_E[several_M[i] + 1]):
                if allowed >> np.uint64(tables.slot_node[s]) & _ONE:
                    miss_G[tables.slot_rank[s]] *= 1.0 - share / copies_beside(s, several_M[i], tables)
    for e in several_M:
        for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
            rank = tables.slot_rank[s]
            if seen_G[rank] != 2 * t:
                total += 1.0 - miss_G[rank]
            miss_G[rank] = 1.0
    return total


@inner_kernel
def _serve(
    several_M: npt.NDArray[np.int64],
    host_M: npt.NDArray[np.uint64],
    allowed: np.uint64,
    cell: np.uint64,
    weight: float,
    tables: LayerTables,
    load_P: npt.NDArray[np.float64],
) -> None:
    """Book `weight` of each expert for every home of the cell that does not host it: evenly over the allowed nodes."""
    for i in range(several_M.shape[0]):
        homes = popcount(cell & ~host_M[i])
        if homes == 0:
            continue
        e = several_M[i]
        share = weight * homes / popcount(host_M[i] & allowed)
        for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
            if allowed >> np.uint64(tables.slot_node[s]) & _ONE:
                load_P[tables.slot_id[s]] += share / copies_beside(s, e, tables)


@inner_kernel
def _serve_at_home(e: int, count: int, tables: LayerTables, load_P: npt.NDArray[np.float64]) -> None:
    """Book an expert's assignments where its one slot is, or those of homes that host it."""
    first = tables.slot_ptr_E[e]
    if tables.slot_ptr_E[e + 1] - first == 1:
        load_P[tables.slot_id[first]] += count
        return
    for s in range(first, tables.slot_ptr_E[e + 1]):
        load_P[tables.slot_id[s]] += count / tables.num_nodes / copies_beside(s, e, tables)
