"""Sends and loads of one layer's map under `min-nodes` on up to 4 nodes, homes random and links alike (numba).

The family of a token's experts (`node_families`) says how many nodes the token visits and how much of each expert each
node serves, so a token costs a few looks at tables. Ranks that a token visits are its remote assignments, less those
that go where another of its experts is served: each such rank is looked at.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from placement.cost.covers import popcount
from placement.cost.lookup_tables import LayerTables, copies_beside
from placement.cost.node_families import Choices, Families
from placement.cost.sets import set_size
from placement.cost.traffic import Traffic
from placement.support.kernel import inlined_kernel, inner_kernel, kernel

_ONE = np.uint64(1)
_ZERO = np.uint64(0)
_SINGLE, _COPY, _PAIR, _CROWD = 0, 1, 2, 3  # what a rank has of a token's experts, see `_Ranks`


class _Ranks(NamedTuple):
    """What ranks have of the token's experts: one with one copy, or copies of one, two or more that have several.

    seen_G   int64 [G], 4 * token + one of these four
    copy_G   int64 [G], the first copy that was found
    pair_G   float64 [G], assignments of the first two that share the rank, summed over homes
    share_C  float64 [C], of each copy: 1 / copies of the expert on the node
    host_C   uint64 [C], of each copy: the nodes of the expert
    """

    seen_G: npt.NDArray[np.int64]
    copy_G: npt.NDArray[np.int64]
    pair_G: npt.NDArray[np.float64]
    share_C: npt.NDArray[np.float64]
    host_C: npt.NDArray[np.uint64]


@kernel
def cost_families(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    tables: LayerTables,
    families: Families,
    choices: Choices,
    traffic: Traffic,
    load_P: npt.NDArray[np.float64],
) -> None:
    """Add copies and assignments that leave to `traffic.remote_3`, and assignments per slot to `load_P`."""
    num_nodes, num_experts, num_ranks = tables.num_nodes, tables.host_E.shape[0], tables.num_ranks
    ranks = _Ranks(
        np.full(num_ranks, -1, dtype=np.int64),
        np.empty(num_ranks, dtype=np.int64),
        np.empty(num_ranks),
        np.empty(tables.slot_id.shape[0]),
        np.empty(tables.slot_id.shape[0], dtype=np.uint64),
    )
    word_E = np.empty(num_experts, dtype=np.int64)
    rank_E = np.empty(num_experts, dtype=np.int64)  # of experts with one copy; of others ~ their row in `served_RZ`
    rows = 0
    for e in range(num_experts):
        word_E[e] = families.word_M[tables.host_E[e]]
        first, stop = tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]
        for s in range(first, stop):
            ranks.share_C[s] = 1.0 / copies_beside(s, e, tables)
            ranks.host_C[s] = tables.host_E[e]
        if stop - first == 1:
            rank_E[e] = tables.slot_rank[first]
        else:
            rank_E[e] = ~rows
            rows += 1
    served_RZ = np.zeros((rows, families.width), dtype=np.int64)  # assignments by state of the token
    count_E = np.zeros(num_experts, dtype=np.int64)
    several_K = np.empty(ids_TK.shape[1], dtype=np.int64)
    crowd_T = np.empty(ids_TK.shape[0], dtype=np.int64)  # the state of tokens that have a crowd on a rank, else -1
    nodes, shared = 0, 0.0  # of all homes together
    for t in range(ids_TK.shape[0]):
        word, num_several, joined = families.everyone, 0, 0
        for k in range(set_size(ids_TK[t])):
            e = int(ids_TK[t, k])
            count_E[e] += count_T[t]
            word &= word_E[e]
            rank = rank_E[e]
            if rank < 0:
                several_K[num_several] = e
                num_several += 1
                continue
            if ranks.seen_G[rank] == 4 * t + _SINGLE:
                joined += num_nodes - 1
            ranks.seen_G[rank] = 4 * t + _SINGLE
        z = int(families.state_W[word])
        nodes += count_T[t] * families.sends_BZ[0, z]
        shared += count_T[t] * joined
        crowd_T[t] = -1
        if num_several > 0:
            for i in range(num_several):
                served_RZ[~rank_E[several_K[i]], z] += count_T[t]
            more, crowded = _shared(several_K[:num_several], z, t, tables, families, choices, ranks)
            shared += count_T[t] * more
            crowd_T[t] = z if crowded else -1
    for t in range(ids_TK.shape[0]):  # few tokens; called above, this would have all arrays counted for each token
        if crowd_T[t] >= 0:
            shared += count_T[t] * _shared_in_crowds(ids_TK[t], crowd_T[t], tables, choices, ranks)
    assignments = 0
    for e in range(num_experts):
        assignments += count_E[e] * (num_nodes - popcount(tables.host_E[e]))
        if rank_E[e] >= 0:
            load_P[tables.slot_id[tables.slot_ptr_E[e]]] += count_E[e]
        else:
            _serve(e, served_RZ[~rank_E[e]], tables, families, ranks.share_C, load_P)
    traffic.remote_3[0] += nodes / num_nodes
    traffic.remote_3[1] += (assignments - shared) / num_nodes
    traffic.remote_3[2] += assignments / num_nodes


@inlined_kernel
def _shared(
    several_M: npt.NDArray[np.int64],
    z: int,
    t: int,
    tables: LayerTables,
    families: Families,
    choices: Choices,
    ranks: _Ranks,
) -> tuple[float, bool]:
    """(remote assignments of experts with several copies less the ranks that they add, summed over all homes, without
    those on ranks that have a crowd; whether there is such a rank)."""
    shared, crowded = 0.0, False
    for e in several_M:
        host = tables.host_E[e]
        for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
            rank, node = tables.slot_rank[s], tables.slot_node[s]
            seen = ranks.seen_G[rank] - 4 * t
            if seen < 0:
                ranks.seen_G[rank], ranks.copy_G[rank] = 4 * t + _COPY, s
            elif seen == _SINGLE:  # the rank is visited from all other nodes; at home all of the expert is served
                served = families.share_MNY[host, node, z] / families.unit
                shared += (served - 1.0) * ranks.share_C[s]
            elif seen == _COPY:
                other = ranks.copy_G[rank]
                both = choices.both_MMNZ[host, ranks.host_C[other], node, z]
                ranks.pair_G[rank] = both * ranks.share_C[s] * ranks.share_C[other]
                shared += ranks.pair_G[rank]
                ranks.seen_G[rank] = 4 * t + _PAIR
            elif seen == _PAIR:
                shared -= ranks.pair_G[rank]
                ranks.seen_G[rank] = 4 * t + _CROWD
                crowded = True
    return shared, crowded


@inner_kernel
def _shared_in_crowds(ids_K: npt.NDArray[Any], z: int, tables: LayerTables, choices: Choices, ranks: _Ranks) -> float:
    """The same on ranks that have copies of more than two experts: home by home and choice by choice."""
    shared, member_K = 0.0, np.empty(ids_K.shape[0], dtype=np.int64)
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
            shared += total / found
    return shared


@inner_kernel
def _serve(
    e: int,
    served_Z: npt.NDArray[np.int64],
    tables: LayerTables,
    families: Families,
    share_C: npt.NDArray[np.float64],
    load_P: npt.NDArray[np.float64],
) -> None:
    """Book the assignments of an expert with several copies: by node as families say, there evenly over its ranks."""
    for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
        total = 0
        for z in range(families.width):
            total += served_Z[z] * families.share_MNY[tables.host_E[e], tables.slot_node[s], z]
        load_P[tables.slot_id[s]] += share_C[s] * total / (tables.num_nodes * families.unit)
