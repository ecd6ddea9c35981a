"""Simulated annealing of slot contents where a copy is chosen by chance: `local-first` and `uniform`.

An expert is then served at unit x (node or rank, by the transport) with a probability that depends on its own copies
and the home alone, so a token costs, at its home or in the mean over homes,

    sum over x of fare[home, x] * (1 - product over its experts of (1 - p[e, x]))

and loads are sums over experts: exact where homes are random, else with every expert's tokens from all homes alike.
Only the sets of the two experts that a move touches are computed anew, and only if the balance allows the move.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.solvers.annealing.anneal_common import Balance, Incidence, random_below, random_unit, random_word
from placement.solvers.annealing.replica_loads import add_load, cost_after
from placement.support.inner_kernel import inner_kernel

Floats = npt.NDArray[np.float64]
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@nb.njit(cache=True, nogil=True)
def anneal_chance(
    phy2log_P: npt.NDArray[np.int32],
    inc: Incidence,
    bal: Balance,
    fare_HX: Floats,
    local_first: bool,
    hot: float,
    cold: float,
    moves: int,
    seed: np.uint64,
) -> float:
    """Anneal `phy2log_P` in place from temperature `hot` to `cold` (sends per token); returns the best cost seen.

    fare_HX      cost of one copy of one token of the sample, float64 [H, X]: a row a home, or one row if the choice
                 sees no home
    local_first  copies on the home node serve all; else any copy serves with equal chance
    """
    num_experts, num_boots = bal.load_EB.shape
    num_homes, num_units = fare_HX.shape
    num_slots = phy2log_P.shape[0]
    num_ranks = bal.num_nodes * bal.gpus_per_node
    state = np.empty(1, dtype=np.uint64)
    state[0] = seed
    random_word(state)
    holds_GE = np.zeros((num_ranks, num_experts), dtype=np.int64)
    copies_E = np.zeros(num_experts, dtype=np.int64)
    for p in range(num_slots):
        holds_GE[p // bal.slots_per_gpu, phy2log_P[p]] += 1
        copies_E[phy2log_P[p]] += 1
    miss_EHX = np.ones((num_experts, num_homes, num_units))
    share_EG = np.zeros((num_experts, num_ranks))
    for e in range(num_experts):
        _chances(e, holds_GE, local_first, bal, miss_EHX[e], share_EG[e])
    load_GB = np.zeros((num_ranks, num_boots))
    peak_NB = np.zeros((bal.num_nodes, num_boots))  # not looked at: every node is taken to change
    all_nodes = ~_ZERO >> np.uint64(64 - bal.num_nodes)
    for e in range(num_experts):
        add_load(load_GB, e, share_EG[e], all_nodes, bal)
    peak_B = np.zeros(num_boots)
    more_G = np.zeros((2, num_ranks))
    uneven = cost_after(load_GB, peak_NB, all_nodes, 0, more_G[0], 0, more_G[1], bal, peak_B)
    num_sets = inc.sets_UK.shape[0]
    cost_U, fresh_U = np.zeros(num_sets), np.zeros(num_sets)
    mark_U = np.full(num_sets, -1, dtype=np.int64)
    sends = 0.0
    for t in range(num_sets):
        cost_U[t] = inc.count_U[t] * _cost_of_set(inc.sets_UK[t], inc.home_U[t], miss_EHX, fare_HX)
        sends += cost_U[t]
    best = sends + uneven
    best_P = phy2log_P.copy()
    old_miss = np.empty((2, num_homes, num_units))
    old_share = np.empty((2, num_ranks))
    cooling = (cold / hot) ** (1.0 / max(moves - 1, 1))
    temperature = hot
    for move in range(moves):
        threshold = -temperature * np.log(random_unit(state))
        temperature *= cooling
        p, q = random_below(state, num_slots), random_below(state, num_slots)
        u, v = int(phy2log_P[p]), int(phy2log_P[q])
        r, s = p // bal.slots_per_gpu, q // bal.slots_per_gpu
        replace = random_word(state) & _ONE == _ZERO
        if u == v or holds_GE[r, v]:
            continue
        if (replace and copies_E[u] == 1) or (not replace and (r == s or holds_GE[s, u])):
            continue
        pair = (u, v)
        for side in range(2):
            old_miss[side], old_share[side] = miss_EHX[pair[side]], share_EG[pair[side]]
        _book(u, v, r, s, replace, 1, holds_GE, copies_E)
        for side in range(2):
            e = pair[side]
            _chances(e, holds_GE, local_first, bal, miss_EHX[e], share_EG[e])
            more_G[side] = share_EG[e] - old_share[side]
        after = cost_after(load_GB, peak_NB, all_nodes, u, more_G[0], v, more_G[1], bal, peak_B)
        change = after - uneven
        accept = change <= threshold + sends  # no sends at all would do
        if accept:
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
            _book(u, v, r, s, replace, -1, holds_GE, copies_E)
            for side in range(2):
                miss_EHX[pair[side]], share_EG[pair[side]] = old_miss[side], old_share[side]
            continue
        for side in range(2):
            for x in range(inc.expert_ptr[pair[side]], inc.expert_ptr[pair[side] + 1]):
                t = inc.expert_sets[x]
                sends += fresh_U[t] - cost_U[t]
                cost_U[t] = fresh_U[t]
        phy2log_P[p] = v
        if not replace:
            phy2log_P[q] = u
        add_load(load_GB, u, more_G[0], all_nodes, bal)
        add_load(load_GB, v, more_G[1], all_nodes, bal)
        uneven = after
        if sends + uneven < best - 1e-12:
            best = sends + uneven
            best_P[:] = phy2log_P
    phy2log_P[:] = best_P
    return float(best)


@nb.njit(cache=True, nogil=True)
def _chances(
    e: int,
    holds_GE: npt.NDArray[np.int64],
    local_first: bool,
    bal: Balance,
    miss_HX: Floats,
    share_G: Floats,
) -> None:
    """Write 1 - p[e, x] for every home, and what each rank serves of e's load, divided by the rank's speed."""
    num_homes, num_units = miss_HX.shape
    num_ranks = holds_GE.shape[0]
    ranks_per_unit = num_ranks // num_units
    total = 0
    for g in range(num_ranks):
        total += holds_GE[g, e]
    share_G[:] = 0.0
    miss_HX[:] = 1.0
    for h in range(num_homes):
        first, last, copies = 0, num_ranks, total
        if local_first:
            near = 0
            for g in range(h * bal.gpus_per_node, (h + 1) * bal.gpus_per_node):
                near += holds_GE[g, e]
            if near > 0:
                first, last, copies = h * bal.gpus_per_node, (h + 1) * bal.gpus_per_node, near
        for g in range(first, last):
            if holds_GE[g, e]:
                share_G[g] += bal.slowness_G[g] / (copies * num_homes)
                miss_HX[h, g // ranks_per_unit] -= 1.0 / copies
    for h in range(num_homes):
        for x in range(num_units):
            miss_HX[h, x] = max(miss_HX[h, x], 0.0)


@inner_kernel
def _cost_of_set(ids_K: npt.NDArray[np.int32], home: int, miss_EHX: Floats, fare_HX: Floats) -> float:
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


@inner_kernel
def _book(
    u: int,
    v: int,
    r: int,
    s: int,
    replace: bool,
    sign: int,
    holds_GE: npt.NDArray[np.int64],
    copies_E: npt.NDArray[np.int64],
) -> None:
    """Book (sign 1) or undo (-1) that v takes u's slot on rank r, and u takes v's on rank s unless it is replaced."""
    holds_GE[r, u] -= sign
    holds_GE[r, v] += sign
    if replace:
        copies_E[u] -= sign
        copies_E[v] += sign
    else:
        holds_GE[s, u] += sign
        holds_GE[s, v] -= sign
