"""Simulated annealing of slot contents where every expert has one copy.

Sends are connectivity - 1 over random homes: (1 - 1/N) * mean number of nodes that a top-k set touches. Two tables make
almost every move a few additions (Fiduccia-Mattheyses gains, exact for hyperedges):
    enter_EN[e, n]  sets of e that do not touch node n yet: they would if e moved there
    leave_E[e]      sets of e that touch e's node only because of e
For a swap the sum of both experts' gains is a lower bound; it is exact after adding the sets that hold both.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.solvers.anneal_common import (
    Balance,
    Incidence,
    balance_cost,
    random_below,
    random_unit,
    random_word,
    three_highest,
)


@nb.njit(cache=True, nogil=True)
def anneal_single(
    phy2log_P: npt.NDArray[np.int32],
    inc: Incidence,
    bal: Balance,
    hot: float,
    cold: float,
    moves: int,
    seed: np.uint64,
) -> float:
    """Anneal `phy2log_P` in place from temperature `hot` to `cold` (sends per token); returns the best cost seen.

    The best map is what `phy2log_P` holds at the end. Cost = sends + price * expected imbalance + cap penalty.
    """
    num_experts = bal.load_EB.shape[0]
    num_boots = bal.load_EB.shape[1]
    num_slots = phy2log_P.shape[0]
    slots_per_node = bal.slots_per_gpu * bal.gpus_per_node
    num_ranks = bal.num_nodes * bal.gpus_per_node
    sets, count = inc.sets_UK, inc.count_U
    per_send = (1.0 - 1.0 / bal.num_nodes) / count.sum()
    state = np.empty(1, dtype=np.uint64)
    state[0] = seed
    random_word(state)

    node_E = np.empty(num_experts, dtype=np.int64)
    for p in range(num_slots):
        node_E[phy2log_P[p]] = p // slots_per_node
    touch_UN = np.zeros((sets.shape[0], bal.num_nodes), dtype=np.uint8)
    enter_EN = np.zeros((num_experts, bal.num_nodes), dtype=np.int64)
    leave_E = np.zeros(num_experts, dtype=np.int64)
    touched = _fill(sets, count, node_E, touch_UN, enter_EN, leave_E)
    load_GB = np.zeros((num_ranks, num_boots))
    for p in range(num_slots):
        g = p // bal.slots_per_gpu
        for b in range(num_boots):
            load_GB[g, b] += bal.load_EB[phy2log_P[p], b] * bal.slowness_G[g]
    high_3B = np.empty((3, num_boots))
    rank_3B = np.empty((3, num_boots), dtype=np.int64)
    peak_B = np.empty(num_boots)
    for b in range(num_boots):
        three_highest(load_GB, b, high_3B, rank_3B)
    uneven = balance_cost(high_3B[0], bal.price, bal.cap)
    cost = touched * per_send + uneven
    best = cost
    best_P = phy2log_P.copy()
    cooling = (cold / hot) ** (1.0 / max(moves - 1, 1))
    temperature = hot
    for _ in range(moves):
        p = random_below(state, num_slots)
        q = random_below(state, num_slots)
        threshold = -temperature * np.log(random_unit(state))
        temperature *= cooling
        r, s = p // bal.slots_per_gpu, q // bal.slots_per_gpu
        if r == s:
            continue
        u, v = phy2log_P[p], phy2log_P[q]
        i, j = node_E[u], node_E[v]
        gain = 0
        if i != j:
            gain = enter_EN[u, j] - leave_E[u] + enter_EN[v, i] - leave_E[v]
            if gain * per_send - uneven + bal.price > threshold:  # even perfect balance would not do
                continue
        # balance after the swap, under every bootstrap
        slow_r, slow_s = bal.slowness_G[r], bal.slowness_G[s]
        for b in range(num_boots):  # without branches, so that it is vectorised
            shift = bal.load_EB[v, b] - bal.load_EB[u, b]
            first_moves = (rank_3B[0, b] == r) | (rank_3B[0, b] == s)
            second_moves = (rank_3B[1, b] == r) | (rank_3B[1, b] == s)
            others = high_3B[1, b] if first_moves else high_3B[0, b]
            others = high_3B[2, b] if first_moves & second_moves else others
            peak = max(load_GB[r, b] + shift * slow_r, load_GB[s, b] - shift * slow_s)
            peak_B[b] = max(peak, others)
        after = balance_cost(peak_B, bal.price, bal.cap)
        change = after - uneven
        if gain * per_send + change > threshold:
            continue
        if i != j:
            row = min(u, v) * num_experts + max(u, v)
            for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
                t = inc.pair_sets[x]
                gain += count[t] * (np.int64(touch_UN[t, i] == 1) + np.int64(touch_UN[t, j] == 1))
            if gain * per_send + change > threshold:
                continue
            _move(u, v, i, j, inc, node_E, touch_UN, enter_EN, leave_E)
            _move(v, u, j, i, inc, node_E, touch_UN, enter_EN, leave_E)
            _exchange_shared(u, v, i, j, inc, row, touch_UN, leave_E)
            node_E[u], node_E[v] = j, i
            touched += gain
        phy2log_P[p], phy2log_P[q] = v, u
        for b in range(num_boots):
            shift = bal.load_EB[v, b] - bal.load_EB[u, b]
            load_GB[r, b] += shift * slow_r
            load_GB[s, b] -= shift * slow_s
            rises = max(load_GB[r, b], load_GB[s, b]) > high_3B[2, b]
            first, second, third = rank_3B[0, b], rank_3B[1, b], rank_3B[2, b]
            if rises or first in (r, s) or second in (r, s) or third in (r, s):
                three_highest(load_GB, b, high_3B, rank_3B)
        uneven = after
        cost = touched * per_send + uneven
        if cost < best - 1e-12:
            best = cost
            best_P[:] = phy2log_P
    phy2log_P[:] = best_P
    return float(best)


@nb.njit(cache=True, nogil=True)
def _fill(
    sets: npt.NDArray[np.int32],
    count: npt.NDArray[np.int64],
    node_E: npt.NDArray[np.int64],
    touch_UN: npt.NDArray[np.uint8],
    enter_EN: npt.NDArray[np.int64],
    leave_E: npt.NDArray[np.int64],
) -> int:
    """Build the tables; returns the number of (token, node) incidences."""
    touched = 0
    for t in range(sets.shape[0]):
        for k in range(sets.shape[1]):
            touch_UN[t, node_E[sets[t, k]]] += np.uint8(1)
        for n in range(touch_UN.shape[1]):
            if touch_UN[t, n] > 0:
                touched += count[t]
            else:
                for k in range(sets.shape[1]):
                    enter_EN[sets[t, k], n] += count[t]
        for k in range(sets.shape[1]):
            if touch_UN[t, node_E[sets[t, k]]] == 1:
                leave_E[sets[t, k]] += count[t]
    return touched


@nb.njit(cache=True, nogil=True)
def _move(
    u: int,
    other: int,
    i: int,
    j: int,
    inc: Incidence,
    node_E: npt.NDArray[np.int64],
    touch_UN: npt.NDArray[np.uint8],
    enter_EN: npt.NDArray[np.int64],
    leave_E: npt.NDArray[np.int64],
) -> None:
    """Expert u goes from node i to j in all its sets that do not hold `other`."""
    sets = inc.sets_UK
    top_k = sets.shape[1]
    for x in range(inc.expert_ptr[u], inc.expert_ptr[u + 1]):
        t = inc.expert_sets[x]
        both = False
        for k in range(top_k):
            if sets[t, k] == other:
                both = True
        if both:
            continue
        w = inc.count_U[t]
        left, entered = touch_UN[t, i], touch_UN[t, j]
        touch_UN[t, i] = left - np.uint8(1)
        touch_UN[t, j] = entered + np.uint8(1)
        if left == 1:
            leave_E[u] -= w
            for k in range(top_k):
                enter_EN[sets[t, k], i] += w
        elif left == 2:
            for k in range(top_k):
                e = sets[t, k]
                if e != u and node_E[e] == i:
                    leave_E[e] += w
        if entered == 0:
            leave_E[u] += w
            for k in range(top_k):
                enter_EN[sets[t, k], j] -= w
        elif entered == 1:
            for k in range(top_k):
                e = sets[t, k]
                if e != u and node_E[e] == j:
                    leave_E[e] -= w


@nb.njit(cache=True, nogil=True)
def _exchange_shared(
    u: int,
    v: int,
    i: int,
    j: int,
    inc: Incidence,
    row: int,
    touch_UN: npt.NDArray[np.uint8],
    leave_E: npt.NDArray[np.int64],
) -> None:
    """Sets that hold both experts touch the same nodes after the swap, but the two trade places in them."""
    for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
        t = inc.pair_sets[x]
        w = inc.count_U[t]
        alone_i, alone_j = w * np.int64(touch_UN[t, i] == 1), w * np.int64(touch_UN[t, j] == 1)
        leave_E[u] += alone_j - alone_i
        leave_E[v] += alone_i - alone_j
