"""Simulated annealing of slot contents where every expert has one copy.

A token costs the fare, from its home, of every distinct unit (node or rank, by the transport) that its top-k set
touches: where homes are random, that is the mean over homes. Two tables (`single_gains`) make almost every move a few
additions: Fiduccia-Mattheyses gains, exact for hyperedges.
For a swap the sum of both experts' gains is a lower bound; it is exact after adding the sets that hold both.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.solvers.annealing.anneal_common import (
    CAP_PRICE,
    Balance,
    Incidence,
    balance_cost,
    copy_row,
    cost_of_moves,
    random_below,
    random_unit,
    random_word,
    three_highest,
)
from placement.solvers.annealing.single_gains import exchange_shared, fill_gains, move_expert, nearest_unit
from placement.support.inner_kernel import inner_kernel

CANDIDATES = 4


class Room(NamedTuple):
    """What a search writes to. numpy makes the arrays: numba would compile a function for each kind of them."""

    state: npt.NDArray[np.uint64]
    unit_E: npt.NDArray[np.int64]
    touch_UX: npt.NDArray[np.uint8]
    enter_EX: npt.NDArray[np.float64]
    leave_E: npt.NDArray[np.float64]
    shared_U: npt.NDArray[np.bool_]
    load_GB: npt.NDArray[np.float64]
    load_N: npt.NDArray[np.float64]
    high_3B: npt.NDArray[np.float64]
    rank_3B: npt.NDArray[np.int64]
    peak_B: npt.NDArray[np.float64]
    relief_G: npt.NDArray[np.float64]
    best_P: npt.NDArray[np.int32]


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
    num_experts, num_boots = bal.load_EB.shape
    num_sets, num_units = inc.sets_UK.shape[0], bal.fare_HX.shape[1]
    num_ranks = bal.num_nodes * bal.gpus_per_node
    room = Room(
        state=np.array([seed], dtype=np.uint64),
        unit_E=np.empty(num_experts, dtype=np.int64),
        touch_UX=np.zeros((num_sets, num_units), dtype=np.uint8),
        enter_EX=np.zeros((num_experts, num_units)),
        leave_E=np.zeros(num_experts),
        shared_U=np.zeros(num_sets, dtype=np.bool_),
        load_GB=np.zeros((num_ranks, num_boots)),
        load_N=np.zeros(bal.num_nodes),
        high_3B=np.empty((3, num_boots)),
        rank_3B=np.empty((3, num_boots), dtype=np.int64),
        peak_B=np.empty(num_boots),
        relief_G=np.empty(num_ranks),
        best_P=phy2log_P.copy(),
    )
    return float(single_kernel(phy2log_P, inc, bal, room, hot, cold, moves))


@nb.njit(cache=True, nogil=True)
def single_kernel(
    phy2log_P: npt.NDArray[np.int32], inc: Incidence, bal: Balance, room: Room, hot: float, cold: float, moves: int
) -> float:
    """`anneal_single` in the room that it makes."""
    num_experts = bal.load_EB.shape[0]
    num_boots = bal.load_EB.shape[1]
    num_slots = phy2log_P.shape[0]
    slots_per_node = bal.slots_per_gpu * bal.gpus_per_node
    count, home, fare_HX = inc.count_U, inc.home_U, bal.fare_HX
    num_units = fare_HX.shape[1]
    slots_per_unit = num_slots // num_units
    state, unit_E, touch_UX, enter_EX, leave_E, shared_U, load_GB, load_N, high_3B, rank_3B, peak_B = room[:11]
    relief_G, best_P = room[11:]
    random_word(state)

    for p in range(num_slots):
        unit_E[phy2log_P[p]] = p // slots_per_unit
    wire = fill_gains(inc, fare_HX, unit_E, touch_UX, enter_EX, leave_E) + cost_of_moves(phy2log_P, bal)
    for p in range(num_slots):
        g = p // bal.slots_per_gpu
        load_N[p // slots_per_node] += bal.load_EB[phy2log_P[p], 0]
        for b in range(num_boots):
            load_GB[g, b] += bal.load_EB[phy2log_P[p], b] * bal.slowness_G[g]
    for b in range(num_boots):
        three_highest(load_GB, b, high_3B, rank_3B)
    measure_relief(high_3B, rank_3B, bal, relief_G)
    node_capped = bal.node_cap < np.inf
    uneven = balance_cost(high_3B[0], bal.price, bal.cap)
    penalty = node_penalty(load_N, bal) if node_capped else 0.0
    uneven += penalty
    cost = wire + uneven
    best = cost
    cooling = (cold / hot) ** (1.0 / max(moves - 1, 1))
    temperature = hot
    for move in range(moves):
        p = random_below(state, num_slots)
        if move % 2:
            q = random_below(state, num_slots)
        else:  # half of the proposals take an expert to its sets, for one that is drawn to where it was
            i = unit_E[phy2log_P[p]]
            j = nearest_unit(phy2log_P[p], i, enter_EX)
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
            move_expert(u, i, j, inc, fare_HX, shared_U, unit_E, touch_UX, enter_EX, leave_E)
            move_expert(v, j, i, inc, fare_HX, shared_U, unit_E, touch_UX, enter_EX, leave_E)
            for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
                shared_U[inc.pair_sets[x]] = False
            exchange_shared(u, v, i, j, inc, fare_HX, row, touch_UX, leave_E)
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
            copy_row(phy2log_P, best_P)
    copy_row(best_P, phy2log_P)
    return float(best)


@inner_kernel
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


@inner_kernel
def node_penalty(load_N: npt.NDArray[np.float64], bal: Balance) -> float:
    """What the most loaded node costs beyond the cap on nodes."""
    peak = 0.0
    for n in range(load_N.shape[0]):
        peak = max(peak, load_N[n] * bal.slowness_N[n])
    return CAP_PRICE * max(0.0, peak - bal.node_cap)
