"""Simulated annealing of slot contents where a copy is chosen by chance: `local-first` and `uniform`.

An expert is then served at unit x (node or rank, by the transport) with a probability that depends on its own copies
and the home alone, so a token costs, at its home or in the mean over homes,

    sum over x of fare[home, x] * (1 - product over its experts of (1 - p[e, x]))

and loads are sums over experts: exact where homes are random, else with every expert's tokens from all homes alike.
Only the sets of the two experts that a move touches are computed anew, and only if the balance allows the move.
"""

from __future__ import annotations

import numpy as np

from placement.solvers.annealing.anneal_common import (
    BOOK,
    LEAST_GAIN,
    ONE,
    UNDO,
    ZERO,
    Costs,
    Floats,
    Ids,
    Incidence,
    Ints,
    allowance,
    book_slots,
    cooling_of,
    random_below,
    random_word,
)
from placement.solvers.annealing.rank_loads import add_load, cost_after
from placement.support.kernel import inner_kernel, kernel


@kernel
def anneal_chance(
    phy2log_P: Ids,
    inc: Incidence,
    costs: Costs,
    fare_HX: Floats,
    local_first: bool,
    hot: float,
    cold: float,
    moves: int,
    seed: np.uint64,
) -> float:
    """As `anneal_replicas`, for choices by chance.

    Args:
        fare_HX: cost of one copy of one token of the sample, float64 [H, X]: a row a home, or one row if the choice
            sees no home.
        local_first: copies on the home node serve all; else any copy serves with equal chance.
    """
    num_experts, num_boots = costs.load_EB.shape
    num_homes, num_units = fare_HX.shape
    num_slots = phy2log_P.shape[0]
    num_ranks = costs.num_nodes * costs.gpus_per_node
    state = np.empty(1, dtype=np.uint64)
    state[0] = seed
    random_word(state)

    # books of the first map: copies, chances, loads, sends of every set
    on_EN = np.zeros((num_experts, costs.num_nodes), dtype=np.int64)
    holds_EG = np.zeros((num_experts, num_ranks), dtype=np.int64)
    copies_E = np.zeros(num_experts, dtype=np.int64)
    for p in range(num_slots):
        g = p // costs.slots_per_gpu
        on_EN[phy2log_P[p], g // costs.gpus_per_node] += 1
        holds_EG[phy2log_P[p], g] += 1
        copies_E[phy2log_P[p]] += 1
    miss_EHX = np.ones((num_experts, num_homes, num_units))
    share_EG = np.zeros((num_experts, num_ranks))
    for e in range(num_experts):
        _chances(on_EN[e], holds_EG[e], local_first, costs, miss_EHX[e], share_EG[e])
    load_GB = np.zeros((num_ranks, num_boots))
    peak_NB = np.zeros((costs.num_nodes, num_boots))  # every node is taken to change, so no value is read
    all_nodes = ~ZERO >> np.uint64(64 - costs.num_nodes)
    for e in range(num_experts):
        add_load(load_GB, e, share_EG[e], all_nodes, costs)
    peak_B = np.zeros(num_boots)
    more_G = np.zeros((2, num_ranks))
    uneven = cost_after(load_GB, peak_NB, all_nodes, 0, more_G[0], 0, more_G[1], costs, peak_B)
    num_sets = inc.sets_UK.shape[0]
    cost_U, fresh_U = np.zeros(num_sets), np.zeros(num_sets)
    mark_U = np.full(num_sets, -1, dtype=np.int64)
    sends = 0.0
    for t in range(num_sets):
        cost_U[t] = inc.count_U[t] * _cost_of_set(inc.sets_UK[t], inc.home_U[t], miss_EHX, fare_HX)
        sends += cost_U[t]
    # objective = sends + uneven: imbalance and what exceeds the caps
    best = sends + uneven
    best_P = phy2log_P.copy()
    old_miss = np.empty((2, num_homes, num_units))
    old_share = np.empty((2, num_ranks))
    cooling = cooling_of(hot, cold, moves)
    temperature = hot
    for move in range(moves):
        # the objective may rise by the threshold
        threshold = allowance(temperature, state)
        temperature *= cooling
        # propose that the expert of slot q takes slot p: in a swap, or as a copy in place of p's expert
        p, q = random_below(state, num_slots), random_below(state, num_slots)
        u, v = int(phy2log_P[p]), int(phy2log_P[q])
        r, s = p // costs.slots_per_gpu, q // costs.slots_per_gpu
        replace = random_word(state) & ONE == ZERO
        # every expert keeps a copy, and no rank gets an expert twice
        if u == v or holds_EG[v, r]:
            continue
        if (replace and copies_E[u] == 1) or (not replace and (r == s or holds_EG[u, s])):
            continue
        # chances and imbalance after the move
        i, j = r // costs.gpus_per_node, s // costs.gpus_per_node
        pair = (u, v)
        for side in range(2):
            old_miss[side], old_share[side] = miss_EHX[pair[side]], share_EG[pair[side]]
        book_slots(u, v, i, j, r, s, replace, BOOK, on_EN, holds_EG)
        for side in range(2):
            e = pair[side]
            _chances(on_EN[e], holds_EG[e], local_first, costs, miss_EHX[e], share_EG[e])
            more_G[side] = share_EG[e] - old_share[side]
        after = cost_after(load_GB, peak_NB, all_nodes, u, more_G[0], v, more_G[1], costs, peak_B)
        change = after - uneven
        accept = change <= threshold + sends  # true even if the move left no sends
        if accept:
            # sends after the move: the sets of u and v anew, those of both once
            for side in range(2):
                e = pair[side]
                for x in range(inc.expert_ptr[e], inc.expert_ptr[e + 1]):
                    t = inc.expert_sets[x]
                    if mark_U[t] != move:
                        mark_U[t] = move
                        fresh_U[t] = inc.count_U[t] * _cost_of_set(inc.sets_UK[t], inc.home_U[t], miss_EHX, fare_HX)
                        change += fresh_U[t] - cost_U[t]
            accept = change <= threshold
        if not accept:
            book_slots(u, v, i, j, r, s, replace, UNDO, on_EN, holds_EG)
            for side in range(2):
                miss_EHX[pair[side]], share_EG[pair[side]] = old_miss[side], old_share[side]
            continue
        # the move is accepted: keep sends, map and loads
        for side in range(2):
            for x in range(inc.expert_ptr[pair[side]], inc.expert_ptr[pair[side] + 1]):
                t = inc.expert_sets[x]
                sends += fresh_U[t] - cost_U[t]
                cost_U[t] = fresh_U[t]
        phy2log_P[p] = v
        if replace:
            copies_E[u] -= 1
            copies_E[v] += 1
        else:
            phy2log_P[q] = u
        add_load(load_GB, u, more_G[0], all_nodes, costs)
        add_load(load_GB, v, more_G[1], all_nodes, costs)
        uneven = after
        if sends + uneven < best - LEAST_GAIN:
            best = sends + uneven
            best_P[:] = phy2log_P
    phy2log_P[:] = best_P
    return float(best)


@kernel
def _chances(on_N: Ints, holds_G: Ints, local_first: bool, costs: Costs, miss_HX: Floats, share_G: Floats) -> None:
    """Write 1 - p[e, x] for every home, and what each rank serves of an expert's load, divided by the rank's speed.

    on_N, holds_G: the expert's copies on each node and rank.
    """
    num_homes, num_units = miss_HX.shape
    num_ranks = holds_G.shape[0]
    ranks_per_unit = num_ranks // num_units
    total = 0
    for copies in on_N:
        total += copies
    share_G[:] = 0.0
    miss_HX[:] = 1.0
    for h in range(num_homes):
        first, last, copies = 0, num_ranks, total
        if local_first and on_N[h] > 0:
            first, last, copies = h * costs.gpus_per_node, (h + 1) * costs.gpus_per_node, on_N[h]
        for g in range(first, last):
            if holds_G[g]:
                share_G[g] += costs.slowness_G[g] / (copies * num_homes)
                miss_HX[h, g // ranks_per_unit] -= 1.0 / copies
    for h in range(num_homes):
        for x in range(num_units):
            miss_HX[h, x] = max(miss_HX[h, x], 0.0)


@inner_kernel
def _cost_of_set(ids_K: Ids, home: int, miss_EHX: Floats, fare_HX: Floats) -> float:
    total = 0.0
    first, last = (home, home + 1) if home >= 0 else (0, fare_HX.shape[0])
    for h in range(first, last):
        for x in range(fare_HX.shape[1]):
            if fare_HX[h, x] > 0.0:
                miss = 1.0
                for k in range(ids_K.shape[0]):
                    miss *= miss_EHX[ids_K[k], h, x]
                total += fare_HX[h, x] * (1.0 - miss)
    return total / (last - first)
