"""What a layer's map sends and serves where a token's rank says by which chance each copy serves its expert (numba).

See `placement.cost.kernel_replicas`, whose sums these are; there the home node says so. Where the rank is not known,
every rank of the home is taken for an equal share of the tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.cost.kernel_balanced import RunningLoad, count_token
from placement.cost.lookup_tables import LayerTables
from placement.cost.sets import set_size
from placement.cost.traffic import Traffic
from placement.support.hash64 import GOLDEN, mix_word
from placement.support.kernel import inner_kernel, kernel

Floats = npt.NDArray[np.float64]
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@kernel
def cost_by_rank(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    home_T: npt.NDArray[np.int32],
    chance_GC: Floats,
    tables: LayerTables,
    traffic: Traffic,
    load_P: Floats,
) -> None:
    """`chance_GC`: the chance that copy c serves its expert for tokens of rank g; experts are served independently."""
    num_nodes, num_ranks = tables.num_nodes, tables.num_ranks
    gpus = num_ranks // num_nodes
    several_K = np.empty(ids_TK.shape[1], dtype=np.int64)
    miss_N, miss_G = np.ones(num_nodes), np.ones(num_ranks)
    seen_G = np.full(num_ranks, -1, dtype=np.int64)
    anywhere_N, anywhere_G, assigned_G = np.zeros(num_nodes), np.zeros(num_ranks), np.zeros(num_ranks)
    for t in range(ids_TK.shape[0]):
        home, times = home_T[t], count_T[t]
        rows = (anywhere_N, anywhere_G, assigned_G)
        if home >= 0:
            rows = (traffic.node_HN[home], traffic.rank_HG[home], traffic.assignment_HG[home])
        num_several, forced = book_single_copies(ids_TK[t], t, times, tables, rows, seen_G, load_P, several_K)
        if num_several == 0:
            continue
        first, last = (home, home + 1) if home >= 0 else (0, num_nodes)
        weight = times / (gpus * (last - first))
        for h in range(first, last):
            for g in range(h * gpus, (h + 1) * gpus):
                for k in range(num_several):
                    _share(several_K[k], weight, chance_GC[g], tables, traffic.assignment_HG[h], load_P, miss_N, miss_G)
                for k in range(num_several):
                    e = several_K[k]
                    for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
                        node, rank = tables.slot_node[s], tables.slot_rank[s]
                        if not forced >> np.uint64(node) & _ONE:
                            traffic.node_HN[h, node] += weight * (1.0 - miss_N[node])
                        if seen_G[rank] != t:
                            traffic.rank_HG[h, rank] += weight * (1.0 - miss_G[rank])
                        miss_N[node] = 1.0
                        miss_G[rank] = 1.0
    add_anywhere(traffic, anywhere_N, anywhere_G, assigned_G)


@inner_kernel
def book_single_copies(
    ids_K: npt.NDArray[Any],
    t: int,
    times: int,
    tables: LayerTables,
    rows: tuple[Floats, Floats, Floats],
    seen_G: npt.NDArray[np.int64],
    load_P: Floats,
    several_K: npt.NDArray[np.int64],
) -> tuple[int, np.uint64]:
    """Book a token's experts with one copy; returns how many have several, which go to `several_K`, and nodes booked.

    rows    copies by node, by rank and assignments of the token's home
    seen_G  `t` where a rank is booked
    """
    row_N, row_G, served_G = rows
    forced, num_several = _ZERO, 0
    for k in range(set_size(ids_K)):
        e = np.int64(ids_K[k])
        first = tables.slot_ptr_E[e]
        if tables.slot_ptr_E[e + 1] - first > 1:
            several_K[num_several] = e
            num_several += 1
            continue
        node, rank = tables.slot_node[first], tables.slot_rank[first]
        load_P[tables.slot_id[first]] += times
        served_G[rank] += times
        if seen_G[rank] != t:
            seen_G[rank] = t
            row_G[rank] += times
        if forced & (_ONE << np.uint64(node)) == _ZERO:
            forced |= _ONE << np.uint64(node)
            row_N[node] += times
    return num_several, forced


@inner_kernel
def add_anywhere(traffic: Traffic, anywhere_N: Floats, anywhere_G: Floats, assigned_G: Floats) -> None:
    """Book what tokens send whose home is unknown, and for whom the home makes no difference: the same from each."""
    num_nodes = anywhere_N.shape[0]
    for h in range(num_nodes):
        for n in range(num_nodes):
            traffic.node_HN[h, n] += anywhere_N[n] / num_nodes
        for g in range(anywhere_G.shape[0]):
            traffic.rank_HG[h, g] += anywhere_G[g] / num_nodes
            traffic.assignment_HG[h, g] += assigned_G[g] / num_nodes


@inner_kernel
def _share(
    e: int,
    weight: float,
    chance_C: Floats,
    tables: LayerTables,
    served_G: Floats,
    load_P: Floats,
    miss_N: Floats,
    miss_G: Floats,
) -> None:
    """Share one assignment over the copies of `e`; `miss` becomes the chance that neither this nor those before go."""
    s, stop = tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]
    while s < stop:  # copies of an expert are in slot order, so those of a node lie together
        node, here = tables.slot_node[s], 0.0
        while s < stop and tables.slot_node[s] == node:
            chance = chance_C[s]
            load_P[tables.slot_id[s]] += weight * chance
            served_G[tables.slot_rank[s]] += weight * chance
            miss_G[tables.slot_rank[s]] *= 1.0 - chance
            here += chance
            s += 1
        miss_N[node] *= max(1.0 - here, 0.0)


@kernel
def draw_by_rank(
    rank: int,
    chance_C: Floats,
    tables: LayerTables,
    ids_TK: npt.NDArray[Any],
    running: RunningLoad,
    slot_TK: npt.NDArray[np.int32],
) -> None:
    """Write the slot that serves each expert of tokens of `rank`; -1 for an id below 0: see `draw_slots`."""
    for t in range(ids_TK.shape[0]):
        word = mix_word(np.uint64(running.seen_1[0]) * GOLDEN + mix_word(np.uint64(rank)))
        for k in range(ids_TK.shape[1]):
            slot_TK[t, k] = -1
            if ids_TK[t, k] < 0:
                continue
            e = np.int64(ids_TK[t, k])
            left = np.float64(mix_word(word + np.uint64(e + 1) * GOLDEN) >> np.uint64(11)) / 9007199254740992.0
            for s in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
                if chance_C[s] > 0.0:  # the last of them where rounding leaves a little
                    slot_TK[t, k] = tables.slot_id[s]
                    left -= chance_C[s]
                    if left < 0.0:
                        break
        count_token(running)
