"""Sends and loads of one layer's map under `min-nodes` where homes are random and all links are alike (numba).

Then a token's homes fall into few classes: covers of its experts differ only between homes that host different ones of
its open experts, and copies that stay at home need not be counted. `cost_replicated` knows any links.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from placement.cost.covers import COUNT_0, MAX_COVERS, pivot_of, popcount, smallest_covers
from placement.cost.lookup_tables import LayerTables, copies_beside
from placement.cost.sets import set_size
from placement.cost.traffic import Traffic
from placement.support.kernel import inlined_kernel, inner_search_kernel, kernel

_ONE = np.uint64(1)
_ZERO = np.uint64(0)


class _Room(NamedTuple):
    """Counts of all tokens, and room for one.

    count_E   int64 [E], tokens of each expert
    forced_N  int64 [N], tokens that are forced to a node by an expert with one slot; forced_G: to a rank
    seen_G    int64 [G], 2t: by an expert of token t with one slot, 2t + 1: by another
    miss_G    float64 [G], 1 between tokens
    """

    count_E: npt.NDArray[np.int64]
    forced_N: npt.NDArray[np.int64]
    forced_G: npt.NDArray[np.int64]
    several_K: npt.NDArray[np.int64]
    host_K: npt.NDArray[np.uint64]
    open_K: npt.NDArray[np.uint64]
    left_K: npt.NDArray[np.uint64]
    covers: npt.NDArray[np.uint64]
    seen_G: npt.NDArray[np.int64]
    miss_G: npt.NDArray[np.float64]


@kernel
def cost_min_nodes(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    tables: LayerTables,
    traffic: Traffic,
    load_P: npt.NDArray[np.float64],
) -> None:
    """Add copies and assignments to `traffic`, few of those that stay at home; and assignments per slot to `load_P`.

    A token's experts with one slot force their nodes; of the others those that no forced node hosts are open. Homes
    are looked at by cells: those of one cell host the same open experts, so that they choose alike.
    """
    top_k, num_nodes, num_ranks = ids_TK.shape[1], tables.num_nodes, tables.num_ranks
    room = _Room(
        count_E=np.zeros(tables.host_E.shape[0], dtype=np.int64),
        forced_N=np.zeros(num_nodes, dtype=np.int64),
        forced_G=np.zeros(num_ranks, dtype=np.int64),
        several_K=np.empty(top_k, dtype=np.int64),
        host_K=np.empty(top_k, np.uint64),
        open_K=np.empty(top_k, np.uint64),
        left_K=np.empty(top_k, np.uint64),
        covers=np.empty(MAX_COVERS, dtype=np.uint64),
        seen_G=np.full(num_ranks, -1, dtype=np.int64),
        miss_G=np.ones(num_ranks),
    )
    _look_at_tokens(ids_TK, count_T, tables, traffic, load_P, room)
    for home in range(num_nodes):
        for n in range(num_nodes):
            traffic.node_HN[home, n] += room.forced_N[n] / num_nodes
        for rank in range(num_ranks):
            traffic.rank_HG[home, rank] += room.forced_G[rank] / num_nodes
    for expert in range(tables.host_E.shape[0]):
        _serve_at_home(expert, int(room.count_E[expert]), tables, traffic, load_P)


@inner_search_kernel
def _look_at_tokens(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    tables: LayerTables,
    traffic: Traffic,
    load_P: npt.NDArray[np.float64],
    room: _Room,
) -> None:
    """Book all but what is the same for all homes."""
    num_nodes = tables.num_nodes
    all_nodes = ~_ZERO >> np.uint64(64 - num_nodes)
    count_E, forced_N, forced_G, several_K, host_K, open_K, left_K, covers, seen_G, miss_G = room
    for t in range(ids_TK.shape[0]):
        size, forced, num_several = set_size(ids_TK[t]), _ZERO, 0
        for k in range(size):
            e = np.int64(ids_TK[t, k])
            count_E[e] += count_T[t]
            first = tables.slot_ptr_E[e]
            if tables.slot_ptr_E[e + 1] - first > 1:
                several_K[num_several] = e
                host_K[num_several] = tables.host_E[e]
                num_several += 1
                continue
            if forced & tables.host_E[e] == _ZERO:
                forced |= tables.host_E[e]
                forced_N[tables.slot_node[first]] += count_T[t]
            if seen_G[tables.slot_rank[first]] != 2 * t:
                seen_G[tables.slot_rank[first]] = 2 * t
                forced_G[tables.slot_rank[first]] += count_T[t]
        several_M, host_M = several_K[:num_several], host_K[:num_several]
        hosts, reached, num_open = _ZERO, _ZERO, 0
        for host in host_M:
            hosts |= host
            if host & forced == _ZERO:
                open_K[num_open] = host
                reached |= host
                num_open += 1
        crowded = num_several > 0 and _share_ranks(several_M, tables, seen_G, t)
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
                allowed, weight = forced | covers[c], count_T[t] / (found * num_nodes)
                _visit(host_M, forced, covers[c], cell, weight, traffic)
                _serve(several_M, host_M, allowed, cell, weight, crowded, tables, traffic, load_P)
                if crowded:
                    _visit_ranks(
                        several_M, host_M, allowed, cell, first_home, weight, tables, seen_G, t, miss_G, traffic
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


@inner_search_kernel
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


@inner_search_kernel
def _sure_nodes(host_M: npt.NDArray[np.uint64], forced: np.uint64, cover: np.uint64, cell: np.uint64) -> np.uint64:
    """Nodes of the cover that every home of the cell sends to; only greedy covers have a node that no expert needs."""
    sure = _ZERO
    for host in host_M:
        choices = host & cover
        if host & (forced | cell) == _ZERO and choices & (choices - _ONE) == _ZERO:
            sure |= choices
    return sure


@inlined_kernel
def _chance_of_visit(host_M: npt.NDArray[np.uint64], allowed: np.uint64, home: np.uint64, node: np.uint64) -> float:
    """How often a token of a home is sent to a node, where experts are served by any of the allowed nodes."""
    miss = 1.0
    for host in host_M:
        if host & home == _ZERO and host & node != _ZERO:
            miss *= 1.0 - 1.0 / popcount(host & allowed)
    return 1.0 - miss


@inner_search_kernel
def visited_nodes(host_M: npt.NDArray[np.uint64], forced: np.uint64, cover: np.uint64, cell: np.uint64) -> float:
    """Expected nodes that are visited beside the forced ones, summed over the homes of the cell."""
    sure = cover & _sure_nodes(host_M, forced, cover, cell)
    total, unsure = float(popcount(cell) * popcount(sure)), cover & ~sure
    while unsure != _ZERO:
        node = unsure & (~unsure + _ONE)
        unsure ^= node
        homes = cell
        while homes != _ZERO:
            home = homes & (~homes + _ONE)
            homes ^= home
            total += _chance_of_visit(host_M, forced | cover, home, node)
    return total


@inner_search_kernel
def _visit(
    host_M: npt.NDArray[np.uint64],
    forced: np.uint64,
    cover: np.uint64,
    cell: np.uint64,
    weight: float,
    traffic: Traffic,
) -> None:
    """Book the nodes that are visited beside the forced ones, for each home of the cell."""
    sure, left = _sure_nodes(host_M, forced, cover, cell), cover
    while left != _ZERO:
        node = left & (~left + _ONE)
        left ^= node
        n, homes = popcount(node - _ONE), cell
        while homes != _ZERO:
            home = homes & (~homes + _ONE)
            homes ^= home
            chance = 1.0 if sure & node != _ZERO else _chance_of_visit(host_M, forced | cover, home, node)
            traffic.node_HN[popcount(home - _ONE), n] += weight * chance


@inner_search_kernel
def _visit_ranks(
    several_M: npt.NDArray[np.int64],
    host_M: npt.NDArray[np.uint64],
    allowed: np.uint64,
    cell: np.uint64,
    home: np.uint64,
    weight: float,
    tables: LayerTables,
    seen_G: npt.NDArray[np.int64],
    t: int,
    miss_G: npt.NDArray[np.float64],
    traffic: Traffic,
) -> None:
    """Book the remote ranks that are visited beside those of experts with one slot, for each home of the cell, which is
    `home` or hosts none of the experts; `miss_G` is 1 before and after."""
    for i in range(several_M.shape[0]):
        if host_M[i] & home == _ZERO:
            share = 1.0 / popcount(host_M[i] & allowed)
            for s in range(tables.slot_ptr_E[several_M[i]], tables.slot_ptr_E[several_M[i] + 1]):
                if allowed >> np.uint64(tables.slot_node[s]) & _ONE:
                    miss_G[tables.slot_rank[s]] *= 1.0 - share / copies_beside(s, several_M[i], tables)
    for e in several_M:
        for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
            rank = tables.slot_rank[s]
            if seen_G[rank] != 2 * t and miss_G[rank] < 1.0:
                homes = cell
                while homes != _ZERO:
                    h = popcount((homes & (~homes + _ONE)) - _ONE)
                    homes &= homes - _ONE
                    traffic.rank_HG[h, rank] += weight * (1.0 - miss_G[rank])
            miss_G[rank] = 1.0


@inner_search_kernel
def _serve(
    several_M: npt.NDArray[np.int64],
    host_M: npt.NDArray[np.uint64],
    allowed: np.uint64,
    cell: np.uint64,
    weight: float,
    crowded: bool,
    tables: LayerTables,
    traffic: Traffic,
    load_P: npt.NDArray[np.float64],
) -> None:
    """Book `weight` of each expert for every home of the cell that does not host it: evenly over the allowed nodes.
    Each is a visit of a rank too, unless the token's experts crowd ranks."""
    for i in range(several_M.shape[0]):
        homes = cell & ~host_M[i]
        if homes == _ZERO:
            continue
        e = several_M[i]
        share = weight / popcount(host_M[i] & allowed)
        for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
            if allowed >> np.uint64(tables.slot_node[s]) & _ONE:
                each, rank, left = share / copies_beside(s, e, tables), tables.slot_rank[s], homes
                load_P[tables.slot_id[s]] += popcount(homes) * each
                while left != _ZERO:
                    home = popcount((left & (~left + _ONE)) - _ONE)
                    left &= left - _ONE
                    traffic.assignment_HG[home, rank] += each
                    if not crowded:
                        traffic.rank_HG[home, rank] += each


@inner_search_kernel
def _serve_at_home(e: int, count: int, tables: LayerTables, traffic: Traffic, load_P: npt.NDArray[np.float64]) -> None:
    """Book an expert's assignments where its one slot is, or those of homes that host it."""
    first = tables.slot_ptr_E[e]
    if tables.slot_ptr_E[e + 1] - first == 1:
        load_P[tables.slot_id[first]] += count
        for home in range(tables.num_nodes):
            traffic.assignment_HG[home, tables.slot_rank[first]] += count / tables.num_nodes
        return
    for s in range(first, tables.slot_ptr_E[e + 1]):
        each = count / tables.num_nodes / copies_beside(s, e, tables)
        load_P[tables.slot_id[s]] += each
        traffic.assignment_HG[tables.slot_node[s], tables.slot_rank[s]] += each
