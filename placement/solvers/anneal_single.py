"""Simulated annealing of slot contents where every expert has one copy.

A token costs the fare, from its home, of every distinct unit (node or rank, by the transport) that its top-k set
touches: where homes are random, that is the mean over homes. Two tables make almost every move a few additions
(Fiduccia-Mattheyses gains, exact for hyperedges):
    enter_EX[e, x]  fares of the sets of e that do not touch unit x yet: what they would cost more if e moved there
    leave_E[e]      fares of the sets of e that touch e's unit only because of e
For a swap the sum of both experts' gains is a lower bound; it is exact after adding the sets that hold both.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.solvers.anneal_common import (
    CAP_PRICE,
    Balance,
    Incidence,
    balance_cost,
    cost_of_moves,
    random_below,
    random_unit,
    random_word,
    three_highest,
)

CANDIDATES = 4


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

    The best map is what `phy2log_P` holds at the end. Cost = sends + price * expected imbalance + cap penalty + what
    leaves `stay_GE`.
    """
    num_experts = bal.load_EB.shape[0]
    num_boots = bal.load_EB.shape[1]
    num_slots = phy2log_P.shape[0]
    slots_per_node = bal.slots_per_gpu * bal.gpus_per_node
    num_ranks = bal.num_nodes * bal.gpus_per_node
    sets, count, home, fare_HX = inc.sets_UK, inc.count_U, inc.home_U, bal.fare_HX
    num_units = fare_HX.shape[1]
    slots_per_unit = num_slots // num_units
    state = np.empty(1, dtype=np.uint64)
    state[0] = seed
    random_word(state)

    unit_E = np.empty(num_experts, dtype=np.int64)
    for p in range(num_slots):
        unit_E[phy2log_P[p]] = p // slots_per_unit
    touch_UX = np.zeros((sets.shape[0], num_units), dtype=np.uint8)
    enter_EX = np.zeros((num_experts, num_units))
    leave_E = np.zeros(num_experts)
    shared_U = np.zeros(sets.shape[0], dtype=np.bool_)
    wire = _fill(inc, fare_HX, unit_E, touch_UX, enter_EX, leave_E) + cost_of_moves(phy2log_P, bal)
    load_GB = np.zeros((num_ranks, num_boots))
    load_N = np.zeros(bal.num_nodes)
    for p in range(num_slots):
        g = p // bal.slots_per_gpu
        load_N[p // slots_per_node] += bal.load_EB[phy2log_P[p], 0]
        for b in range(num_boots):
            load_GB[g, b] += bal.load_EB[phy2log_P[p], b] * bal.slowness_G[g]
    high_3B = np.empty((3, num_boots))
    rank_3B = np.empty((3, num_boots), dtype=np.int64)
    peak_B = np.empty(num_boots)
    for b in range(num_boots):
        three_highest(load_GB, b, high_3B, rank_3B)
    relief_G = np.empty(num_ranks)
    measure_relief(high_3B, rank_3B, bal, relief_G)
    node_capped = bal.node_cap < np.inf
    uneven = balance_cost(high_3B[0], bal.price, bal.cap)
    penalty = node_penalty(load_N, bal) if node_capped else 0.0
    uneven += penalty
    cost = wire + uneven
    best = cost
    best_P = phy2log_P.copy()
    cooling = (cold / hot) ** (1.0 / max(moves - 1, 1))
    temperature = hot
    for move in range(moves):
        p = random_below(state, num_slots)
        if move % 2:
            q = random_below(state, num_slots)
        else:  # half of the proposals take an expert to its sets, for one that is drawn to where it was
            i = unit_E[phy2log_P[p]]
            j = _nearest_unit(phy2log_P[p], i, enter_EX)
            q, least = p, np.inf
            for _ in range(CANDIDATES):
                other = j * slots_per_unit + random_below(state, slots_per_unit)
                v = phy2log_P[other]
                gain = enter_EX[v, i] - leave_E[v]
                if gain < least:
                    q, least = other, gain
        threshold = -temperature * np.log(random_unit(state))
        temperature *= cooling
        r, s = p // bal.slots_per_gpu, q // bal.slots_per_gpu
        if r == s:
            continue
        u, v = phy2log_P[p], phy2log_P[q]
        i, j = unit_E[u], unit_E[v]
        gain = bal.stay_GE[r, u] + bal.stay_GE[s, v] - bal.stay_GE[r, v] - bal.stay_GE[s, u]
        if i != j:
            gain += enter_EX[u, j] - leave_E[v] + enter_EX[v, i] - leave_E[u]
            if gain - relief_G[r] - relief_G[s] - penalty > threshold:  # no balance that the swap may bring would do
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
        n, m = p // slots_per_node, q // slots_per_node
        shift = bal.load_EB[v, 0] - bal.load_EB[u, 0]
        if node_capped:
            load_N[n] += shift
            load_N[m] -= shift
            after += node_penalty(load_N, bal)
            load_N[n] -= shift
            load_N[m] += shift
        change = after - uneven
        if gain + change > threshold:
            continue
        if i != j:
            row = min(u, v) * num_experts + max(u, v)
            for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
                t = inc.pair_sets[x]
                fare_i, fare_j = fare_HX[home[t], i], fare_HX[home[t], j]
                gain += count[t] * (fare_i * (touch_UX[t, i] == 1) + fare_j * (touch_UX[t, j] == 1))
            if gain + change > threshold:
                continue
            for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
                shared_U[inc.pair_sets[x]] = True
            _move(u, i, j, inc, fare_HX, shared_U, unit_E, touch_UX, enter_EX, leave_E)
            _move(v, j, i, inc, fare_HX, shared_U, unit_E, touch_UX, enter_EX, leave_E)
            for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
                shared_U[inc.pair_sets[x]] = False
            _exchange_shared(u, v, i, j, inc, fare_HX, row, touch_UX, leave_E)
            unit_E[u], unit_E[v] = j, i
        wire += gain
        phy2log_P[p], phy2log_P[q] = v, u
        load_N[n] += shift
        load_N[m] -= shift
        for b in range(num_boots):
            shift = bal.load_EB[v, b] - bal.load_EB[u, b]
            load_GB[r, b] += shift * slow_r
            load_GB[s, b] -= shift * slow_s
            rises = max(load_GB[r, b], load_GB[s, b]) > high_3B[2, b]
            first, second, third = rank_3B[0, b], rank_3B[1, b], rank_3B[2, b]
            if rises or first in (r, s) or second in (r, s) or third in (r, s):
                three_highest(load_GB, b, high_3B, rank_3B)
        measure_relief(high_3B, rank_3B, bal, relief_G)
        penalty = node_penalty(load_N, bal) if node_capped else 0.0
        uneven = after
        cost = wire + uneven
        if cost < best - 1e-12:
            best = cost
            best_P[:] = phy2log_P
    phy2log_P[:] = best_P
    return float(best)


@nb.njit(cache=True, nogil=True, inline="always")
def _nearest_unit(u: int, own: int, enter_EX: npt.NDArray[np.float64]) -> int:
    """The other unit where u's sets would cost least more; its own if there is no other."""
    nearest, least = own, np.inf
    for x in range(enter_EX.shape[1]):
        if x != own and enter_EX[u, x] < least:
            nearest, least = x, enter_EX[u, x]
    return nearest


@nb.njit(cache=True, nogil=True)
def measure_relief(
    high_3B: npt.NDArray[np.float64],
    rank_3B: npt.NDArray[np.int64],
    bal: Balance,
    relief_G: npt.NDArray[np.float64],
) -> None:
    """What a swap of this rank and another can save at most: no peak falls below the third highest load."""
    relief_G[:] = 0.0
    num_boots = high_3B.shape[1]
    for b in range(num_boots):
        relief_G[rank_3B[0, b]] += bal.price / num_boots * (high_3B[0, b] - max(high_3B[2, b], 0.0))
    relief_G[rank_3B[0, 0]] += CAP_PRICE * max(0.0, high_3B[0, 0] - bal.cap)


@nb.njit(cache=True, nogil=True)
def node_penalty(load_N: npt.NDArray[np.float64], bal: Balance) -> float:
    """What the most loaded node costs beyond the cap on nodes."""
    peak = 0.0
    for n in range(load_N.shape[0]):
        peak = max(peak, load_N[n] * bal.slowness_N[n])
    return CAP_PRICE * max(0.0, peak - bal.node_cap)


@nb.njit(cache=True, nogil=True)
def _fill(
    inc: Incidence,
    fare_HX: npt.NDArray[np.float64],
    unit_E: npt.NDArray[np.int64],
    touch_UX: npt.NDArray[np.uint8],
    enter_EX: npt.NDArray[np.float64],
    leave_E: npt.NDArray[np.float64],
) -> float:
    """Build the tables; returns the sum of all fares."""
    sets, count = inc.sets_UK, inc.count_U
    touched_HX = np.zeros(fare_HX.shape, dtype=np.int64)
    for t in range(sets.shape[0]):
        fare_X = fare_HX[inc.home_U[t]]
        for k in range(sets.shape[1]):
            touch_UX[t, unit_E[sets[t, k]]] += np.uint8(1)
        for x in range(touch_UX.shape[1]):
            if touch_UX[t, x] > 0:
                touched_HX[inc.home_U[t], x] += count[t]
            else:
                for k in range(sets.shape[1]):
                    enter_EX[sets[t, k], x] += count[t] * fare_X[x]
        for k in range(sets.shape[1]):
            if touch_UX[t, unit_E[sets[t, k]]] == 1:
                leave_E[sets[t, k]] += count[t] * fare_X[unit_E[sets[t, k]]]
    total = 0.0
    for h in range(fare_HX.shape[0]):
        for x in range(fare_HX.shape[1]):
            total += fare_HX[h, x] * touched_HX[h, x]
    return total


@nb.njit(cache=True, nogil=True)
def _move(
    u: int,
    i: int,
    j: int,
    inc: Incidence,
    fare_HX: npt.NDArray[np.float64],
    shared_U: npt.NDArray[np.bool_],
    unit_E: npt.NDArray[np.int64],
    touch_UX: npt.NDArray[np.uint8],
    enter_EX: npt.NDArray[np.float64],
    leave_E: npt.NDArray[np.float64],
) -> None:
    """Expert u goes from unit i to j in all its sets but the shared ones."""
    sets = inc.sets_UK
    top_k = sets.shape[1]
    for x in range(inc.expert_ptr[u], inc.expert_ptr[u + 1]):
        t = inc.expert_sets[x]
        if shared_U[t]:
            continue
        fare_i = inc.count_U[t] * fare_HX[inc.home_U[t], i]
        fare_j = inc.count_U[t] * fare_HX[inc.home_U[t], j]
        left, entered = touch_UX[t, i], touch_UX[t, j]
        touch_UX[t, i] = left - np.uint8(1)
        touch_UX[t, j] = entered + np.uint8(1)
        if left == 1:
            leave_E[u] -= fare_i
            for k in range(top_k):
                enter_EX[sets[t, k], i] += fare_i
        elif left == 2:
            for k in range(top_k):
                e = sets[t, k]
                if e != u and unit_E[e] == i:
                    leave_E[e] += fare_i
        if entered == 0:
            leave_E[u] += fare_j
            for k in range(top_k):
                enter_EX[sets[t, k], j] -= fare_j
        elif entered == 1:
            for k in range(top_k):
                e = sets[t, k]
                if e != u and unit_E[e] == j:
                    leave_E[e] -= fare_j


@nb.njit(cache=True, nogil=True)
def _exchange_shared(
    u: int,
    v: int,
    i: int,
    j: int,
    inc: Incidence,
    fare_HX: npt.NDArray[np.float64],
    row: int,
    touch_UX: npt.NDArray[np.uint8],
    leave_E: npt.NDArray[np.float64],
) -> None:
    """Sets that hold both experts touch the same units after the swap, but the two trade places in them."""
    for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
        t = inc.pair_sets[x]
        alone_i = inc.count_U[t] * fare_HX[inc.home_U[t], i] * (touch_UX[t, i] == 1)
        alone_j = inc.count_U[t] * fare_HX[inc.home_U[t], j] * (touch_UX[t, j] == 1)
        leave_E[u] += alone_j - alone_i
        leave_E[v] += alone_i - alone_j
