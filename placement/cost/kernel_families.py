"""Sends and loads of one layer's map under `min-nodes` on up to 4 nodes, homes random and links alike (numba).

The family of a token's experts (`node_families`) says how many nodes the token visits and how much of each expert each
node serves, so a token costs a few looks at tables. Ranks that a token visits are its remote assignments, less those
that go where another of its experts is served: each such rank is looked at.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.cost.lookup_tables import LayerTables
from placement.cost.node_families import Choices, Families
from placement.cost.rank_meetings import SINGLE, Ranks, meet, ranks_of, share_in_crowds, share_of_two
from placement.cost.sets import set_size
from placement.cost.traffic import Traffic
from placement.support.kernel import inner_kernel, inner_search_kernel, kernel

Ints = npt.NDArray[np.int64]
_Books = tuple[Ints, Ints, Ints, Ints, Ints, Ints, Ints, Ints]  # the arrays of `cost_families` of these names


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
    """Add copies and assignments to `traffic`, no copies that stay at home; and assignments per slot to `load_P`."""
    num_nodes, num_experts, num_ranks = tables.num_nodes, tables.host_E.shape[0], tables.num_ranks
    ranks = ranks_of(tables, families.width)
    word_E = np.empty(num_experts, dtype=np.int64)
    rank_E = np.empty(num_experts, dtype=np.int64)  # of experts with one copy; of others ~ their row in `served_RZ`
    rows = 0
    for e in range(num_experts):
        word_E[e] = families.word_M[tables.host_E[e]]
        first, stop = tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]
        if stop - first == 1:
            rank_E[e] = tables.slot_rank[first]
        else:
            rank_E[e] = ~rows
            rows += 1
    served_RZ = np.zeros((rows, families.width), dtype=np.int64)  # assignments by state of the token
    count_E = np.zeros(num_experts, dtype=np.int64)
    several_K = np.empty(ids_TK.shape[1], dtype=np.int64)
    crowd_T = np.empty(ids_TK.shape[0], dtype=np.int64)  # the state of tokens that have a crowd on a rank, else -1
    count_Z = np.zeros(families.width, dtype=np.int64)
    joined_G = np.zeros(num_ranks, dtype=np.int64)  # assignments of experts with one copy less the ranks they visit
    books = (word_E, rank_E, several_K, served_RZ, count_E, count_Z, joined_G, crowd_T)
    _look_at_tokens(ids_TK, count_T, tables, families.state_W, families.everyone, ranks, books)
    shared_HG = np.zeros((num_nodes, num_ranks))  # assignments less the ranks that they visit
    for t in range(ids_TK.shape[0]):  # few tokens; called above, this would have all arrays counted for each token
        if crowd_T[t] >= 0:
            share_in_crowds(ids_TK[t], crowd_T[t], count_T[t], tables, choices, ranks, shared_HG)
    share_of_two(tables, choices, ranks, shared_HG)
    served_HG = np.zeros((num_nodes, num_ranks))
    for e in range(num_experts):
        if rank_E[e] >= 0:
            load_P[tables.slot_id[tables.slot_ptr_E[e]]] += count_E[e]
            for home in range(num_nodes):
                served_HG[home, rank_E[e]] += count_E[e]
        else:
            _serve(e, served_RZ[~rank_E[e]], tables, families, choices, ranks.share_C, served_HG, load_P)
    for home in range(num_nodes):
        for z in range(choices.visit_ZHN.shape[0]):
            for n in range(num_nodes):
                traffic.node_HN[home, n] += count_Z[z] * choices.visit_ZHN[z, home, n] / num_nodes
        for rank in range(num_ranks):
            shared = joined_G[rank] + shared_HG[home, rank]
            traffic.assignment_HG[home, rank] += served_HG[home, rank] / num_nodes
            if rank // (num_ranks // num_nodes) != home:
                traffic.rank_HG[home, rank] += (served_HG[home, rank] - shared) / num_nodes


@inner_search_kernel
def _look_at_tokens(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    tables: LayerTables,
    state_W: npt.NDArray[np.uint8],
    everyone: int,
    ranks: Ranks,
    books: _Books,
) -> None:
    """Count the tokens' states, and who meets whom on a rank: all that depends on single tokens, but for crowds."""
    word_E, rank_E, several_K, served_RZ, count_E, count_Z, joined_G, crowd_T = books
    for t in range(ids_TK.shape[0]):
        word, num_several = everyone, 0
        for k in range(set_size(ids_TK[t])):
            e = int(ids_TK[t, k])
            count_E[e] += count_T[t]
            word &= word_E[e]
            rank = rank_E[e]
            if rank < 0:
                several_K[num_several] = e
                num_several += 1
                continue
            if ranks.seen_G[rank] == 4 * t + SINGLE:
                joined_G[rank] += count_T[t]
            ranks.seen_G[rank] = 4 * t + SINGLE
        z = int(state_W[word])
        count_Z[z] += count_T[t]
        crowd_T[t] = -1
        if num_several > 0:
            for i in range(num_several):
                served_RZ[~rank_E[several_K[i]], z] += count_T[t]
            crowded = meet(several_K[:num_several], z, t, count_T[t], tables, ranks)
            crowd_T[t] = z if crowded else -1


@inner_kernel
def _serve(
    e: int,
    served_Z: npt.NDArray[np.int64],
    tables: LayerTables,
    families: Families,
    choices: Choices,
    share_C: npt.NDArray[np.float64],
    served_HG: npt.NDArray[np.float64],
    load_P: npt.NDArray[np.float64],
) -> None:
    """Book the assignments of an expert with several copies: by node as families say, there evenly over its ranks."""
    for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
        total, host, node = 0, tables.host_E[e], tables.slot_node[s]
        for z in range(families.width):
            total += served_Z[z] * families.share_MNY[host, node, z]
            if served_Z[z] > 0:
                for home in range(tables.num_nodes):
                    served = choices.share_MNZH[host, node, z, home]
                    served_HG[home, tables.slot_rank[s]] += served_Z[z] * served * share_C[s]
        load_P[tables.slot_id[s]] += share_C[s] * total / (tables.num_nodes * families.unit)
