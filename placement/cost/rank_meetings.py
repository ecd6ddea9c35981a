"""Which of a token's experts meet on a rank, so that they share a copy of the token (numba): see `kernel_families`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from placement.cost.covers import popcount
from placement.cost.lookup_tables import LayerTables, copies_beside
from placement.cost.node_families import Choices
from placement.cost.sets import set_size
from placement.support.kernel import inlined_kernel, inner_kernel

_ONE = np.uint64(1)
_ZERO = np.uint64(0)
SINGLE, _COPY, _PAIR, _CROWD = 0, 1, 2, 3  # what a rank has of a token's experts, see `Ranks`


class Ranks(NamedTuple):
    """What ranks have of the token's experts: one with one copy, or copies of one, two or more that have several.

    seen_G   int64 [G], 4 * token + one of these four
    copy_G   int64 [G], the first copy that was found
    row_G    int64 [G], the row of `met_XZ` of the first two that share the rank
    share_C  float64 [C], of each copy: 1 / copies of the expert on the node
    host_C   uint64 [C], of each copy: the nodes of the expert
    place_C  int64 [C], of each copy of an expert with several: its place among those on its rank; else -1
    copy_GX  int64 [G, ...], the copies in these places
    row_CX   int64 [C, ...], the row of a copy and the one at each place of its rank; at its own place, of a copy and an
             expert with one copy
    met_XZ   int64 [X, Z], tokens in which two copies meet on a rank, by state
    """

    seen_G: npt.NDArray[np.int64]
    copy_G: npt.NDArray[np.int64]
    row_G: npt.NDArray[np.int64]
    share_C: npt.NDArray[np.float64]
    host_C: npt.NDArray[np.uint64]
    place_C: npt.NDArray[np.int64]
    copy_GX: npt.NDArray[np.int64]
    row_CX: npt.NDArray[np.int64]
    met_XZ: npt.NDArray[np.int64]


@inner_kernel
def ranks_of(tables: LayerTables, width: int) -> Ranks:
    num_copies, num_ranks = tables.slot_id.shape[0], tables.num_ranks
    share_C, host_C = np.empty(num_copies), np.empty(num_copies, dtype=np.uint64)
    place_C, on_G = np.full(num_copies, -1), np.zeros(num_ranks, dtype=np.int64)
    rows = 0
    for e in range(tables.host_E.shape[0]):
        first, stop = tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]
        for s in range(first, stop):
            share_C[s] = 1.0 / copies_beside(s, e, tables)
            host_C[s] = tables.host_E[e]
            if stop - first > 1:
                place_C[s] = on_G[tables.slot_rank[s]]
                on_G[tables.slot_rank[s]] += 1
                rows += on_G[tables.slot_rank[s]]
    copy_GX = np.zeros((num_ranks, on_G.max()), dtype=np.int64)
    row_CX = np.zeros((num_copies, on_G.max()), dtype=np.int64)
    on_G[:] = 0
    row = 0
    for e in range(tables.host_E.shape[0]):
        first, stop = tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]
        for s in range(first, stop):
            if stop - first > 1:
                rank = tables.slot_rank[s]
                copy_GX[rank, place_C[s]] = s
                on_G[rank] += 1
                for x in range(on_G[rank]):
                    row_CX[s, x] = row_CX[copy_GX[rank, x], place_C[s]] = row
                    row += 1
    return Ranks(
        np.full(num_ranks, -1, dtype=np.int64),
        np.empty(num_ranks, dtype=np.int64),
        np.empty(num_ranks, dtype=np.int64),
        share_C,
        host_C,
        place_C,
        copy_GX,
        row_CX,
        np.zeros((rows, width), dtype=np.int64),
    )


@inlined_kernel
def meet(
    several_M: npt.NDArray[np.int64],
    z: int,
    t: int,
    count: int,
    tables: LayerTables,
    ranks: Ranks,
) -> bool:
    """Count experts with several copies that meet another on a rank, but on ranks that have a crowd; True if there is
    such a rank."""
    crowded = False
    for e in several_M:
        for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
            rank = tables.slot_rank[s]
            seen = ranks.seen_G[rank] - 4 * t
            if seen < 0:
                ranks.seen_G[rank], ranks.copy_G[rank] = 4 * t + _COPY, s
            elif seen == SINGLE:  # the rank is visited from all other nodes
                ranks.met_XZ[ranks.row_CX[s, ranks.place_C[s]], z] += count
            elif seen == _COPY:
                ranks.row_G[rank] = ranks.row_CX[s, ranks.place_C[ranks.copy_G[rank]]]
                ranks.met_XZ[ranks.row_G[rank], z] += count
                ranks.seen_G[rank] = 4 * t + _PAIR
            elif seen == _PAIR:
                ranks.met_XZ[ranks.row_G[rank], z] -= count
                ranks.seen_G[rank] = 4 * t + _CROWD
                crowded = True
    return crowded


@inner_kernel
def share_of_two(tables: LayerTables, choices: Choices, ranks: Ranks, shared_HG: npt.NDArray[np.float64]) -> None:
    """Add assignments less the ranks that they visit, where two copies meet, or one and an expert with one copy."""
    for s in range(tables.slot_id.shape[0]):
        rank, node, own = tables.slot_rank[s], tables.slot_node[s], ranks.place_C[s]
        for x in range(own + 1):
            other = ranks.copy_GX[rank, x]
            for z in range(choices.visit_ZHN.shape[0]):
                count = ranks.met_XZ[ranks.row_CX[s, x], z]
                if count == 0:
                    continue
                for home in range(tables.num_nodes):
                    if x == own:
                        shared = choices.share_MNZH[ranks.host_C[s], node, z, home]
                    else:
                        both = choices.both_MMNZH[ranks.host_C[s], ranks.host_C[other], node, z, home]
                        shared = both * ranks.share_C[other]
                    shared_HG[home, rank] += count * shared * ranks.share_C[s]


@inner_kernel
def share_in_crowds(
    ids_K: npt.NDArray[Any],
    z: int,
    count: int,
    tables: LayerTables,
    choices: Choices,
    ranks: Ranks,
    shared_HG: npt.NDArray[np.float64],
) -> None:
    """The same on ranks that have copies of more than two experts: home by home and choice by choice."""
    member_K = np.empty(ids_K.shape[0], dtype=np.int64)
    for rank in range(tables.num_ranks):
        size, with_single = 0, False
        for k in range(set_size(ids_K)):
            first, stop = tables.slot_ptr_E[ids_K[k]], tables.slot_ptr_E[ids_K[k] + 1]
            for s in range(first, stop):
                if tables.slot_rank[s] == rank:
                    member_K[size] = s
                    size += 1
                    with_single |= stop - first == 1
        if size < 3 or with_single:
            continue
        node = rank // (tables.num_ranks // tables.num_nodes)
        for home in range(tables.num_nodes):
            if home == node:
                continue
            smallest = choices.smallest_HZ[home, z]
            total, found = 0.0, 0
            for chosen in range(1 << tables.num_nodes):
                if smallest >> chosen & 1 == 0:
                    continue
                found += 1
                if chosen >> node & 1 == 0:
                    continue
                miss = 1.0
                for s in member_K[:size]:
                    if ranks.host_C[s] >> np.uint64(home) & _ONE == _ZERO:
                        chance = ranks.share_C[s] / popcount(ranks.host_C[s] & np.uint64(chosen))
                        total += chance
                        miss *= 1.0 - chance
                total -= 1.0 - miss
            shared_HG[home, rank] += count * total / found
