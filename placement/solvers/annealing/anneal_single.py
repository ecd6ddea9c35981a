"""Simulated annealing of slot contents where every expert has one copy.

A token costs the fare, from its home, of every distinct unit (node or rank, by the transport) that its top-k set
touches: where homes are random, that is the mean over homes. Two tables (`single_gains`) make almost every move a few
additions: Fiduccia-Mattheyses gains, exact for hyperedges.
For a swap the sum of both experts' gains is a lower bound; it is exact after adding the sets that hold both.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from placement.cost.covers import COUNT_0
from placement.solvers.annealing.anneal_common import (
    CAP_PRICE,
    LEAST_GAIN,
    Costs,
    Floats,
    Ids,
    Incidence,
    Ints,
    Masks,
    allowance,
    balance_cost,
    cooling_of,
    copy_row,
    cost_of_moves,
    random_below,
    random_word,
    total_of,
)
from placement.solvers.annealing.busiest_node import find_top, measure_into, more_of_busiest
from placement.solvers.annealing.single_gains import GUEST, fill_gains, move_expert, nearest_unit
from placement.solvers.annealing.single_peaks import (
    FEW_BOOTS,
    Highest,
    measure_highest,
    measure_reliefs,
    no_highest,
    node_penalty,
    peaks_after,
    rise_of_few,
)
from placement.support.kernel import search_kernel

CANDIDATES = 4  # experts of the nearest unit that a directed proposal draws from


class SingleRoom(NamedTuple):
    """What a search writes to. numpy makes the arrays: numba would compile a function for each kind of them."""

    state: Masks
    unit_E: Ints
    guest_UX: Ids
    enter_EX: Floats
    leave_E: Floats
    load_GB: Floats
    load_N: Floats
    highest: Highest
    peak_B: Floats
    relief_G: Floats
    rest_G: Floats
    best_P: Ids
    touched_HX: Ints
    into_N: Floats
    top_3: Ints


def anneal_single(
    phy2log_P: Ids,
    inc: Incidence,
    costs: Costs,
    hot: float,
    cold: float,
    moves: int,
    seed: np.uint64,
) -> float:
    """Anneal a map in place; the best map seen is what it holds at the end.

    Args:
        phy2log_P: the map, int32 [P].
        inc: the sets of the sample.
        costs: fares, loads, prices and caps.
        hot: first temperature, in sends per token; cold: the last.
        moves: how many swaps are proposed.
        seed: of the random numbers.

    Returns:
        The lowest cost seen: sends + price * expected imbalance + what exceeds the caps + what leaves `stay_GE`.
    """
    num_experts, num_boots = costs.load_EB.shape
    num_sets, num_units = inc.sets_UK.shape[0], costs.fare_HX.shape[1]
    num_ranks = costs.num_nodes * costs.gpus_per_node
    room = SingleRoom(
        state=np.array([seed], dtype=np.uint64),
        unit_E=np.full(num_experts, -1, dtype=np.int64),  # nobody stays at -1
        guest_UX=np.zeros((num_sets, num_units), dtype=np.int32),
        enter_EX=np.zeros((num_experts, num_units)),
        leave_E=np.zeros(num_experts),
        load_GB=np.zeros((num_ranks, num_boots)),
        load_N=np.zeros(costs.num_nodes),
        highest=no_highest(num_boots),
        peak_B=np.empty(num_boots),
        relief_G=np.empty(num_ranks),
        rest_G=np.empty(num_ranks),
        best_P=phy2log_P.copy(),
        touched_HX=np.zeros(costs.fare_HX.shape, dtype=np.int64),
        into_N=np.zeros(costs.num_nodes),
        top_3=np.zeros(3, dtype=np.int64),
    )
    return float(single_kernel(phy2log_P, inc, costs, room, hot, cold, moves))


@search_kernel
def single_kernel(
    phy2log_P: Ids,
    inc: Incidence,
    costs: Costs,
    room: SingleRoom,
    hot: float,
    cold: float,
    moves: int,
) -> float:
    """`anneal_single` in the room that it makes."""
    num_experts, num_boots = costs.load_EB.shape
    num_slots = phy2log_P.shape[0]
    slots_per_node = costs.slots_per_gpu * costs.gpus_per_node
    count, home, fare_HX = inc.count_U, inc.home_U, costs.fare_HX
    num_units = fare_HX.shape[1]
    slots_per_unit = num_slots // num_units
    state, unit_E, guest_UX, enter_EX, leave_E, load_GB, load_N, highest, peak_B = room[:9]
    relief_G, rest_G, best_P, touched_HX, into_N, top_3 = room[9:]
    units_per_node = num_units // costs.num_nodes
    busy = costs.busy
    random_word(state)

    # books of the first map: units, sends, loads of ranks and nodes, peaks
    for p in range(num_slots):
        unit_E[phy2log_P[p]] = p // slots_per_unit
    wire = fill_gains(inc, fare_HX, unit_E, guest_UX, enter_EX, leave_E, touched_HX) + cost_of_moves(phy2log_P, costs)
    measure_into(fare_HX, touched_HX, into_N)
    find_top(into_N, top_3)
    wire += busy * (costs.num_nodes * into_N[top_3[0]] - total_of(into_N))
    for p in range(num_slots):
        g = p // costs.slots_per_gpu
        load_N[p // slots_per_node] += costs.load_EB[phy2log_P[p], 0]
        for b in range(num_boots):
            load_GB[g, b] += costs.load_EB[phy2log_P[p], b] * costs.slowness_G[g]
    measure_highest(load_GB, highest)
    measure_reliefs(highest, costs, relief_G, rest_G)
    node_capped = costs.node_cap < np.inf
    penalty = node_penalty(load_N, costs) if node_capped else 0.0
    above = penalty + CAP_PRICE * max(0.0, highest.first_B[0] - costs.cap)
    # objective = wire + uneven: sends and moved slots; imbalance and what exceeds the caps
    uneven = balance_cost(highest.first_B, costs.price, costs.cap) + penalty
    best = wire + uneven
    cooling = cooling_of(hot, cold, moves)
    temperature = hot
    for move in range(moves):
        # propose that the experts of slots p and q swap
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
        # the objective may rise by the threshold
        threshold = allowance(temperature, state)
        temperature *= cooling
        r, s = p // costs.slots_per_gpu, q // costs.slots_per_gpu
        if r == s:
            continue
        u, v = int(np.int64(phy2log_P[p])), int(np.int64(phy2log_P[q]))  # the types that the other search has
        i, j = unit_E[u], unit_E[v]
        # what moving slots costs more
        more_i, more_j, moving = 0.0, 0.0, 0.0
        gain = costs.stay_GE[r, u] + costs.stay_GE[s, v] - costs.stay_GE[r, v] - costs.stay_GE[s, u]
        if i != j:
            # sends, as if no set held both: the least that they can rise by
            moving, n, m = gain, i // units_per_node, j // units_per_node
            more_i, more_j = enter_EX[v, i] - leave_E[u], enter_EX[u, j] - leave_E[v]
            gain += (1.0 - busy) * (more_i + more_j) + busy * more_of_busiest(n, m, more_i, more_j, into_N, top_3)
            if gain - relief_G[r] - relief_G[s] - penalty > threshold:  # no balance that the swap may bring would do
                continue
        # imbalance after the swap, under few bootstraps first
        few = COUNT_0
        if num_boots > FEW_BOOTS:
            few = COUNT_0 + FEW_BOOTS
            peaks_after(u, v, r, s, COUNT_0, few, load_GB, highest, costs, peak_B)
            rise = rise_of_few(peak_B, highest.first_B) * costs.price / num_boots
            if gain + rise - rest_G[r] - rest_G[s] - above > threshold:  # whatever the others bring
                continue
        peaks_after(u, v, r, s, few, num_boots, load_GB, highest, costs, peak_B)
        after = balance_cost(peak_B, costs.price, costs.cap)
        # what exceeds the cap on nodes after the swap
        n, m = p // slots_per_node, q // slots_per_node
        shift = costs.load_EB[v, 0] - costs.load_EB[u, 0]
        if node_capped:
            load_N[n] += shift
            load_N[m] -= shift
            after += node_penalty(load_N, costs)
            load_N[n] -= shift
            load_N[m] += shift
        change = after - uneven
        if gain + change > threshold:
            continue
        if i != j:
            # sets that hold both touch the same units as before: sends exactly
            row = min(u, v) * num_experts + max(u, v)
            for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
                t = inc.pair_sets[x]
                fare_i, fare_j = fare_HX[home[t], i], fare_HX[home[t], j]
                more_i += count[t] * fare_i * (guest_UX[t, i] < 2 * GUEST)
                more_j += count[t] * fare_j * (guest_UX[t, j] < 2 * GUEST)
            n, m = i // units_per_node, j // units_per_node
            gain = (1.0 - busy) * (more_i + more_j) + busy * more_of_busiest(n, m, more_i, more_j, into_N, top_3)
            gain += moving
            if gain + change > threshold:
                continue
            # the swap is accepted: keep the tables of sends
            move_expert(u, i, j, inc, fare_HX, guest_UX, enter_EX, leave_E)
            move_expert(v, j, i, inc, fare_HX, guest_UX, enter_EX, leave_E)
            unit_E[u], unit_E[v] = j, i
            into_N[n] += more_i
            into_N[m] += more_j
            find_top(into_N, top_3)
        # keep the map, the loads, and the peaks of bootstraps whose highest ranks change
        wire += gain
        phy2log_P[p], phy2log_P[q] = v, u
        load_N[n] += shift
        load_N[m] -= shift
        slow_r, slow_s = costs.slowness_G[r], costs.slowness_G[s]
        for b in range(num_boots):
            shift = costs.load_EB[v, b] - costs.load_EB[u, b]
            load_GB[r, b] += shift * slow_r
            load_GB[s, b] -= shift * slow_s
        measure_highest(load_GB, highest)
        measure_reliefs(highest, costs, relief_G, rest_G)
        penalty = node_penalty(load_N, costs) if node_capped else 0.0
        above = penalty + CAP_PRICE * max(0.0, highest.first_B[0] - costs.cap)
        uneven = after
        if wire + uneven < best - LEAST_GAIN:
            best = wire + uneven
            copy_row(phy2log_P, best_P)
    copy_row(best_P, phy2log_P)
    return float(best)
