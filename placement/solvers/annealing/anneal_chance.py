"""Simulated annealing of slot contents where a copy serves by chance, or by a rule that looks at no other expert.

In each world (`placement.cost.kernel_chances`: a home, a rank, a residue of the row) an expert is then served at unit x
(node or rank, by the transport) with a probability p that its own copies decide. So a token costs, in the mean,

    sum over x and worlds of fare[x, world] * (1 - product over its experts of (1 - p[e, x, world]))

which is linear in the chances of one expert: `need_EXW`, what its sets pay where the expert alone serves, prices a
change at a short dot product, however many sets there are; the sets of two experts that change together are added.
Sends are exact but for the hash of more copies than its residues tell apart; loads are sums over experts, exact where
homes are random, else with every expert's tokens from all homes alike.
"""

from __future__ import annotations

import numpy as np

from placement.cost.kernel_chances import Worlds, chances
from placement.solvers.annealing.anneal_common import (
    BOOK,
    LEAST_GAIN,
    ONE,
    UNDO,
    ZERO,
    Costs,
    Flags,
    Floats,
    Ids,
    Incidence,
    allowance,
    book_slots,
    random_below,
    random_word,
)
from placement.solvers.annealing.rank_loads import add_load, cost_after
from placement.support.kernel import inner_kernel, kernel

COOLED_EVERY = 16  # moves


@kernel
def anneal_chance(
    phy2log_P: Ids,
    inc: Incidence,
    costs: Costs,
    worlds: Worlds,
    fare_HXW: Floats,
    work: float,
    hot: float,
    cold: float,
    moves: int,
    seed: np.uint64,
) -> float:
    """As `anneal_copies`, for choices by chance.

    Args:
        fare_HXW: cost of one copy of one token of the sample in each world, `Worlds.fare_HXW`.
        work: entries of needs that the search may change for each of its moves; it cools, and stops, as moves and
            work go.
    """
    num_experts, num_boots = costs.load_EB.shape
    num_units, num_worlds = fare_HXW.shape[1:]
    num_slots = phy2log_P.shape[0]
    num_ranks = costs.num_nodes * costs.gpus_per_node
    state = np.empty(1, dtype=np.uint64)
    state[0] = seed
    random_word(state)

    # books of the first map: copies, chances, loads, needs
    on_EN = np.zeros((num_experts, costs.num_nodes), dtype=np.int64)
    holds_EG = np.zeros((num_experts, num_ranks), dtype=np.int64)
    copies_E = np.zeros(num_experts, dtype=np.int64)
    for p in range(num_slots):
        g = p // costs.slots_per_gpu
        on_EN[phy2log_P[p], g // costs.gpus_per_node] += 1
        holds_EG[phy2log_P[p], g] += 1
        copies_E[phy2log_P[p]] += 1
    miss_EXW = np.ones((num_experts, num_units, num_worlds))
    share_EG = np.zeros((num_experts, num_ranks))
    for e in range(num_experts):
        if copies_E[e] > 0:
            chances(holds_EG[e], worlds, costs.slowness_G, miss_EXW[e], share_EG[e])
    load_GB = np.zeros((num_ranks, num_boots))
    peak_NB = np.zeros((costs.num_nodes, num_boots))  # every node is taken to change, so no value is read
    all_nodes = ~ZERO >> np.uint64(64 - costs.num_nodes)
    for e in range(num_experts):
        add_load(load_GB, e, share_EG[e], all_nodes, costs)
    peak_B = np.zeros(num_boots)
    more_G = np.zeros((2, num_ranks))
    uneven = cost_after(load_GB, peak_NB, all_nodes, 0, more_G[0], 0, more_G[1], costs, peak_B)
    top_k = inc.sets_UK.shape[1]
    before_KW, after_KW = np.ones((top_k + 1, num_worlds)), np.ones((top_k + 1, num_worlds))
    need_EXW = np.zeros((num_experts, num_units, num_worlds))
    changes_X = np.ones(num_units, dtype=np.bool_)
    sends = 0.0
    for t in range(inc.sets_UK.shape[0]):
        sends += _add_needs(t, 1.0, inc, fare_HXW, changes_X, miss_EXW, need_EXW, before_KW, after_KW)
    mark_U = np.full(inc.sets_UK.shape[0], -1, dtype=np.int64)
    # objective = sends + uneven: imbalance and what exceeds the caps
    best = sends + uneven
    best_P = phy2log_P.copy()
    old_miss, old_share = np.empty((2, num_units, num_worlds)), np.empty((2, num_ranks))
    done, temperature = 0.0, hot
    for move in range(moves):
        if move % COOLED_EVERY == 0:
            progress = max(move / moves, done / (work * moves))
            if progress >= 1.0:
                break
            temperature = hot * (cold / hot) ** progress
        # the objective may rise by the threshold
        threshold = allowance(temperature, state)
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
        # chances, sends and imbalance after the move
        i, j = r // costs.gpus_per_node, s // costs.gpus_per_node
        pair = (u, v)
        book_slots(u, v, i, j, r, s, replace, BOOK, on_EN, holds_EG)
        change = 0.0
        changes_X[:] = False
        for side in range(2):
            e = pair[side]
            old_miss[side], old_share[side] = miss_EXW[e], share_EG[e]
            chances(holds_EG[e], worlds, costs.slowness_G, miss_EXW[e], share_EG[e])
            for x in range(num_units):
                for w in range(num_worlds):
                    less = old_miss[side, x, w] - miss_EXW[e, x, w]
                    if less != 0.0:
                        changes_X[x] = True
                        change += less * need_EXW[e, x, w]
        after = uneven
        accept = change <= threshold + uneven  # true even if the move left no imbalance
        if accept:
            for side in range(2):
                for g in range(num_ranks):
                    more_G[side, g] = share_EG[pair[side], g] - old_share[side, g]
            after = cost_after(load_GB, peak_NB, all_nodes, u, more_G[0], v, more_G[1], costs, peak_B)
            change += after - uneven
            accept = change <= threshold
        if accept:
            change -= _both(u, v, old_miss, inc, fare_HXW, changes_X, miss_EXW)
            accept = change <= threshold
        if not accept:
            book_slots(u, v, i, j, r, s, replace, UNDO, on_EN, holds_EG)
            for side in range(2):
                miss_EXW[pair[side]], share_EG[pair[side]] = old_miss[side], old_share[side]
            continue
        # the move is accepted: the needs of all experts whose sets have u or v; first without these sets, then with
        for sign in (-1.0, 1.0):
            for side in range(2):
                e = pair[side]
                old_miss[side], miss_EXW[e] = miss_EXW[e].copy(), old_miss[side].copy()
            for side in range(2):
                for x in range(inc.expert_ptr[pair[side]], inc.expert_ptr[pair[side] + 1]):
                    t = inc.expert_sets[x]
                    if mark_U[t] != 2 * move + (sign > 0.0):
                        mark_U[t] = 2 * move + (sign > 0.0)
                        sends += _add_needs(t, sign, inc, fare_HXW, changes_X, miss_EXW, need_EXW, before_KW, after_KW)
                        for unit in range(num_units):
                            done += changes_X[unit] * num_worlds * top_k
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


@inner_kernel
def _add_needs(
    t: int,
    sign: float,
    inc: Incidence,
    fare_HXW: Floats,
    changes_X: Flags,
    miss_EXW: Floats,
    need_EXW: Floats,
    before_KW: Floats,
    after_KW: Floats,
) -> float:
    """Add what set t pays where one of its experts alone serves, times `sign`; returns what the set sends there, too.

    before_KW, after_KW: room for products of the members before and after each; ones in the first and the last row
    """
    top_k, num_worlds = inc.sets_UK.shape[1], fare_HXW.shape[2]
    total = 0.0
    for x in range(fare_HXW.shape[1]):
        if not changes_X[x]:
            continue
        for k in range(top_k):
            e, f = inc.sets_UK[t, k], inc.sets_UK[t, top_k - 1 - k]
            for w in range(num_worlds):
                before_KW[k + 1, w] = before_KW[k, w] * miss_EXW[e, x, w]
                after_KW[top_k - 1 - k, w] = after_KW[top_k - k, w] * miss_EXW[f, x, w]
        for w in range(num_worlds):
            after_KW[top_k, w] = sign * inc.count_U[t] * fare_HXW[inc.home_U[t], x, w]
            total += after_KW[top_k, w] * (1.0 - before_KW[top_k, w])
        for k in range(top_k):
            e = inc.sets_UK[t, k]
            for w in range(num_worlds):
                rest = before_KW[k, w] * (after_KW[k + 1, w] if k + 1 < top_k else 1.0)
                need_EXW[e, x, w] += rest * after_KW[top_k, w]
        for w in range(num_worlds):
            after_KW[top_k, w] = 1.0
    return total


@inner_kernel
def _both(
    u: int, v: int, old_miss: Floats, inc: Incidence, fare_HXW: Floats, changes_X: Flags, miss_EXW: Floats
) -> float:
    """What the sets of both u and v are counted for too much, where each expert's change is priced alone."""
    a, b = (u, v) if u < v else (v, u)
    row = a * (inc.expert_ptr.shape[0] - 1) + b
    total = 0.0
    for y in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
        t = inc.pair_sets[y]
        for x in range(fare_HXW.shape[1]):
            if not changes_X[x]:
                continue
            for w in range(fare_HXW.shape[2]):
                more = (old_miss[0, x, w] - miss_EXW[u, x, w]) * (old_miss[1, x, w] - miss_EXW[v, x, w])
                if more == 0.0:
                    continue
                rest = inc.count_U[t] * fare_HXW[inc.home_U[t], x, w]
                for k in range(inc.sets_UK.shape[1]):
                    e = inc.sets_UK[t, k]
                    if e not in (u, v):
                        rest *= miss_EXW[e, x, w]
                total += more * rest
    return total
