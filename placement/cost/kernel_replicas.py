"""What one layer's map sends and serves on many tokens, exact in expectation (numba).

`traffic` collects copies by home node and destination, `load_P` assignments per slot. `count_T` is how often each row
occurs. Homes are node ids; -1 means unknown: every node is the home of an equal share. Where a copy is chosen by
chance, copies are chosen independently for each expert, and the expected number of distinct nodes or ranks is
1 - prod(1 - p) summed over them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from placement.cost.covers import COUNT_0, MAX_COVERS, pivot_of, popcount, smallest_covers
from placement.cost.lookup_tables import LayerTables
from placement.cost.sets import set_size
from placement.cost.traffic import Traffic
from placement.support.kernel import inlined_kernel, kernel

Floats = npt.NDArray[np.float64]
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


class Allowed(NamedTuple):
    """Where experts with several copies are served.

    by_cover  True: experts that their home does not host are served on a smallest cover, its nodes alike; else any slot
              on the allowed nodes serves, all alike
    by_slot   True: a copy counts as often as slots of its rank hold the expert; False too where none does twice
    by_rank   True: where the home serves, its copies are alike all the same
    nodes_EH  uint64 [E, N + 1], allowed nodes of each expert for each home; last for most homes
    """

    by_cover: bool
    by_slot: bool
    by_rank: bool
    nodes_EH: npt.NDArray[np.uint64]


class _Scratch(NamedTuple):
    """Room for one token; `miss` holds the chance that no expert so far is served at a node or rank, 1 in between."""

    open_K: npt.NDArray[np.uint64]
    covers: npt.NDArray[np.uint64]
    miss_N: Floats
    miss_G: Floats


@kernel
def cost_replicated(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    home_T: npt.NDArray[np.int32],
    allow: Allowed,
    apart_E: npt.NDArray[np.uint64],
    tables: LayerTables,
    traffic: Traffic,
    load_P: npt.NDArray[np.float64],
) -> None:
    """Experts may have several copies.

    Experts with one copy are booked once a token; only those with several are looked at again for each home.

    apart_E  uint64 [E], homes for which an expert's copy is chosen in another way than for most
    """
    top_k = ids_TK.shape[1]
    num_nodes = tables.num_nodes
    several_K = np.empty(top_k, dtype=np.int64)
    scratch = _Scratch(
        np.empty(top_k, dtype=np.uint64),
        np.empty(MAX_COVERS, dtype=np.uint64),
        np.ones(num_nodes),
        np.ones(tables.num_ranks),
    )
    alike_N, alike_G, alike_assigned_G = np.zeros(num_nodes), np.zeros(tables.num_ranks), np.zeros(tables.num_ranks)
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
        size, num_several = set_size(ids_TK[t]), 0
        for k in range(size):
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
        pivot = pivot_of(ids_TK[t, :size], num_nodes) if allow.by_cover else 0
        if not random_home:
            work = (row_N, row_G, served_G, load_P)
            _choose(
                several_K[:num_several],
                forced,
                home_T[t],
                allow,
                pivot,
                1.0,
                count_T[t],
                seen_G,
                t,
                tables,
                work,
                scratch,
            )
            continue
        apart = _ZERO
        for k in range(num_several):
            apart |= apart_E[several_K[k]]
        if apart == _ZERO:  # the choice does not see the home: one pass for all homes
            for k in range(num_several):
                e = several_K[k]
                _serve(
                    e,
                    allow.nodes_EH[e, num_nodes],
                    False,
                    allow.by_slot,
                    count_T[t],
                    1.0,
                    tables,
                    served_G,
                    load_P,
                    scratch,
                )
            _distinct(several_K[:num_several], forced, seen_G, t, count_T[t], tables, row_N, row_G, scratch)
            continue
        strangers = num_nodes - popcount(apart)
        if strangers > 0:  # the other homes choose alike: booked for all, and taken off those that are apart again
            work = (alike_N, alike_G, alike_assigned_G, load_P)
            share, away = strangers / num_nodes, 1.0 / num_nodes
            _choose(
                several_K[:num_several], forced, -1, allow, pivot, share, count_T[t], seen_G, t, tables, work, scratch
            )
            for k in range(num_several):
                e = several_K[k]
                for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
                    node, rank = tables.slot_node[s], tables.slot_rank[s]
                    by_node, by_rank, assigned = alike_N[node], alike_G[rank], alike_assigned_G[rank]
                    if assigned == 0.0:
                        continue
                    anywhere_N[node] += by_node
                    anywhere_G[rank] += by_rank
                    assigned_G[rank] += assigned
                    left = apart
                    while left != _ZERO:
                        home = popcount((left & (~left + _ONE)) - _ONE)
                        left &= left - _ONE
                        traffic.node_HN[home, node] -= by_node * away
                        traffic.rank_HG[home, rank] -= by_rank * away
                        traffic.assignment_HG[home, rank] -= assigned * away
                    alike_N[node] = 0.0
                    alike_G[rank] = 0.0
                    alike_assigned_G[rank] = 0.0
        while apart != _ZERO:
            home = popcount((apart & (~apart + _ONE)) - _ONE)
            apart &= apart - _ONE
            work = (traffic.node_HN[home], traffic.rank_HG[home], traffic.assignment_HG[home], load_P)
            weight = count_T[t] / num_nodes
            _choose(several_K[:num_several], forced, home, allow, pivot, 1.0, weight, seen_G, t, tables, work, scratch)
    for h in range(num_nodes):
        traffic.node_HN[h] += anywhere_N / num_nodes
        traffic.rank_HG[h] += anywhere_G / num_nodes
        traffic.assignment_HG[h] += assigned_G / num_nodes


@kernel
def _choose(
    several_M: npt.NDArray[np.int64],
    forced: np.uint64,
    home: int,
    allow: Allowed,
    pivot: int,
    load_share: float,
    weight: float,
    seen_G: npt.NDArray[np.int64],
    t: int,
    tables: LayerTables,
    work: tuple[Floats, Floats, Floats, Floats],
    scratch: _Scratch,
) -> None:
    """Book the experts with several copies of one token at one home (-1: any for which none of them is apart).

    work  the home's rows of copies by node, by rank and of assignments, and `load_P`, which gets `load_share` of it
    """
    row_N, row_G, served_G, load_P = work
    home_bit = _ZERO if home < 0 else _ONE << np.uint64(home)
    column = np.uint64(tables.num_nodes if home < 0 else home)
    found = 1
    if allow.by_cover:
        num_open = COUNT_0
        for e in several_M:
            host = tables.host_E[e]
            if host & (forced | home_bit) == _ZERO:
                scratch.open_K[num_open] = host
                num_open += 1
        found = smallest_covers(scratch.open_K, num_open, pivot, tables.num_nodes, scratch.covers)
    part = weight / found
    for c in range(found):
        for e in several_M:
            allowed = allow.nodes_EH[e, column]
            if allow.by_cover and allowed & home_bit == _ZERO:
                allowed &= forced | scratch.covers[c]
            by_slot = allow.by_slot and not (allow.by_rank and allowed & home_bit != _ZERO)
            _serve(e, allowed, allow.by_cover, by_slot, part, load_share, tables, served_G, load_P, scratch)
        _distinct(several_M, forced, seen_G, t, part, tables, row_N, row_G, scratch)


@inlined_kernel
def _serve(
    e: int,
    allowed: np.uint64,
    node_first: bool,
    by_slot: bool,
    weight: float,
    load_share: float,
    tables: LayerTables,
    served_G: Floats,
    load_P: Floats,
    scratch: _Scratch,
) -> None:
    """Share one assignment over the copies of `e` on allowed nodes: evenly over nodes first, or over all copies.

    by_slot  a copy counts as often as slots of its rank hold the expert
    """
    start, stop = tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]
    usable = 0
    for s in range(start, stop):
        if allowed >> np.uint64(tables.slot_node[s]) & _ONE:
            usable += tables.slot_times[s] if by_slot else 1
    num_allowed = popcount(allowed)
    s = start
    while s < stop:  # copies of an expert are in slot order, so those of a node lie together
        node = tables.slot_node[s]
        end, here = s, 0
        while end < stop and tables.slot_node[end] == node:
            here += tables.slot_times[end] if by_slot else 1
            end += 1
        if allowed >> np.uint64(node) & _ONE:
            share = 1.0 / num_allowed if node_first else here / usable
            scratch.miss_N[node] *= 1.0 - share
            each = share / here
            for copy in range(s, end):
                part = each * tables.slot_times[copy] if by_slot else each
                load_P[tables.slot_id[copy]] += weight * part * load_share
                served_G[tables.slot_rank[copy]] += weight * part
                scratch.miss_G[tables.slot_rank[copy]] *= 1.0 - part
        s = end


@inlined_kernel
def _distinct(
    several_M: npt.NDArray[np.int64],
    forced: np.uint64,
    seen_G: npt.NDArray[np.int64],
    t: int,
    weight: float,
    tables: LayerTables,
    row_N: Floats,
    row_G: Floats,
    scratch: _Scratch,
) -> None:
    """Add the expected distinct nodes and ranks beyond those of single copies; set the scratch back to 1."""
    for e in several_M:
        for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
            node, rank = tables.slot_node[s], tables.slot_rank[s]
            if not forced >> np.uint64(node) & _ONE:
                row_N[node] += weight * (1.0 - scratch.miss_N[node])
            if seen_G[rank] != t:
                row_G[rank] += weight * (1.0 - scratch.miss_G[rank])
            scratch.miss_N[node] = 1.0
            scratch.miss_G[rank] = 1.0
