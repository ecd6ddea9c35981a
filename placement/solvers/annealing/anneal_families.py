"""Simulated annealing of slot contents where experts may have several copies, on at most 4 nodes (`min-nodes`).

A move's change of sends, and the share of load that each node then serves of the moved experts, are exact and cost two
short dot products each, whatever the number of sets (`family_books`). Only the shares of other experts, which the move
changes too, wait for the next refresh.
"""

from __future__ import annotations

from typing import NamedTuple

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
    Masks,
    allowance,
    book_slots,
    cooling_of,
    copy_row,
    cost_of_moves,
    random_below,
    random_word,
    total_of,
)
from placement.solvers.annealing.family_books import (
    FamilyBooks,
    book_set,
    change_of_both,
    change_of_sends,
    no_books,
    shares_of_load,
    update_states,
)
from placement.solvers.annealing.guided_moves import guided_copy, guided_swap, hosts_after, slot_of_fellow
from placement.solvers.annealing.node_families import Families, families_of
from placement.solvers.annealing.peak_floors import Floors, cost_of_swap, measure_floors, most_saved, no_floors
from placement.solvers.annealing.replica_loads import add_load, cost_after, measure_peaks, spread, spread_more
from placement.solvers.annealing.replica_sends import NOBODY
from placement.support.kernel import inner_kernel, kernel

GUIDED = 4  # one proposal of so many is guided
REFRESH = 32  # changes of an expert's nodes between refreshes


class FamilyRoom(NamedTuple):
    """What a search writes to. numpy makes the arrays: numba would compile a function for each kind of them."""

    state: Masks
    on_EN: Ints
    holds_EG: Ints
    copies_E: Ints
    share_u_N: Floats
    share_v_N: Floats
    part_EG: Floats
    more_u_G: Floats
    more_v_G: Floats
    load_GB: Floats
    peak_B: Floats
    peak_NB: Floats
    best_P: Ids
    books: FamilyBooks
    floors: Floors


def anneal_families(
    phy2log_P: Ids, inc: Incidence, costs: Costs, hot: float, cold: float, moves: int, seed: np.uint64
) -> float:
    """As `anneal_single`, where experts may have several copies.

    Moves: swap two slots on different ranks; or give a slot of an expert with several copies to another expert.
    """
    num_experts, num_boots = costs.load_EB.shape
    num_nodes = costs.num_nodes
    num_ranks = num_nodes * costs.gpus_per_node
    tables = families_of(num_nodes, random_homes=bool((inc.home_U < 0).all()))
    room = FamilyRoom(
        state=np.array([seed], dtype=np.uint64),
        on_EN=np.zeros((num_experts, num_nodes), dtype=np.int64),
        holds_EG=np.zeros((num_experts, num_ranks), dtype=np.int64),
        copies_E=np.zeros(num_experts, dtype=np.int64),
        share_u_N=np.zeros(num_nodes),
        share_v_N=np.zeros(num_nodes),
        part_EG=np.zeros((num_experts, num_ranks)),
        more_u_G=np.zeros(num_ranks),
        more_v_G=np.zeros(num_ranks),
        load_GB=np.zeros((num_ranks, num_boots)),
        peak_B=np.zeros(num_boots),
        peak_NB=np.zeros((num_nodes, num_boots)),
        best_P=phy2log_P.copy(),
        books=no_books(num_experts, inc, tables),
        floors=no_floors(num_nodes, num_ranks, num_boots),
    )
    return float(families_kernel(phy2log_P, inc, costs, tables, room, hot, cold, moves))


@kernel
def families_kernel(
    phy2log_P: Ids,
    inc: Incidence,
    costs: Costs,
    tables: Families,
    room: FamilyRoom,
    hot: float,
    cold: float,
    moves: int,
) -> float:
    """`anneal_families` in the room that it makes."""
    num_experts, num_nodes, num_slots = costs.load_EB.shape[0], costs.num_nodes, phy2log_P.shape[0]
    slots_per_node = costs.slots_per_gpu * costs.gpus_per_node
    per_send = total_of(costs.fare_HX[num_nodes]) / costs.fare_HX.shape[1] / max(num_nodes - 1, 1)
    state, on_EN, holds_EG, copies_E, share_u_N, share_v_N, part_EG, more_u_G, more_v_G, load_GB = room[:10]
    peak_B, peak_NB, best_P, books, floors = room[10:]
    host_E = books.host_E
    random_word(state)

    # books of the first map: copies, hosts, states of sets, sends
    for p in range(num_slots):
        e = phy2log_P[p]
        on_EN[e, p // slots_per_node] += 1
        holds_EG[e, p // costs.slots_per_gpu] += 1
        copies_E[e] += 1
        host_E[e] |= ONE << np.uint64(p // slots_per_node)
    sends = 0
    for t in range(inc.sets_UK.shape[0]):
        sends += book_set(t, inc, tables, books)
    all_nodes = ~ZERO >> np.uint64(64 - num_nodes)
    # objective = sends * per_send + moved + uneven: sends, moved slots, imbalance and what exceeds the caps
    uneven = 0.0
    moved = cost_of_moves(phy2log_P, costs)
    best = np.inf
    node_capped = costs.node_cap < np.inf
    changes, due = 0, True
    cooling = cooling_of(hot, cold, moves)
    temperature = hot
    for move in range(moves + 1):
        if due or move == moves:
            # measure loads exactly, and keep the map if its objective is the lowest so far
            load_GB[:] = 0.0
            for e in range(num_experts):
                shares_of_load(e, host_E[e], tables, books, share_u_N)
                spread(share_u_N, on_EN[e], holds_EG[e], host_E[e], costs, part_EG[e])
                add_load(load_GB, e, part_EG[e], host_E[e], costs)
            measure_peaks(load_GB, all_nodes, costs, peak_NB)
            measure_floors(load_GB, peak_NB, costs, floors, peak_B)
            uneven = cost_after(load_GB, peak_NB, ZERO, NOBODY, more_u_G, NOBODY, more_u_G, costs, peak_B)
            if sends * per_send + moved + uneven < best - LEAST_GAIN:
                best = sends * per_send + moved + uneven
                copy_row(phy2log_P, best_P)
            changes, due = 0, False
        if move == moves:
            break
        # the objective may rise by the threshold
        threshold = allowance(temperature, state)
        temperature *= cooling
        # propose that the expert of slot q takes slot p: in a swap, or as a copy in place of p's expert
        p = random_below(state, num_slots)
        q = random_below(state, num_slots)
        replace = random_word(state) & ONE == ZERO
        if move % GUIDED == 0:  # to where sends fall most
            if replace:
                p, q = guided_copy(p, phy2log_P, slots_per_node, copies_E, on_EN, tables, books, state)
            else:
                q = guided_swap(p, phy2log_P, slots_per_node, on_EN, tables, books, state)
        elif move % 2:  # half of the proposals bring an expert to a node that hosts others of its sets
            q = slot_of_fellow(p, phy2log_P, inc, host_E, slots_per_node, state)
        u, v = int(np.int64(phy2log_P[p])), int(np.int64(phy2log_P[q]))  # one type of number, whatever the arrays hold
        r, s = p // costs.slots_per_gpu, q // costs.slots_per_gpu
        # every expert keeps a copy, and no rank gets an expert twice
        if u == v or holds_EG[v, r]:
            continue
        i, j = r // costs.gpus_per_node, s // costs.gpus_per_node
        if replace:
            if copies_E[u] == 1:
                continue
        elif r == s or holds_EG[u, s]:
            continue
        # hosts after the move: u has left slot p (for q), v has come to slot p (from q)
        book_slots(u, v, i, j, r, s, replace, BOOK, on_EN, holds_EG)
        host_u, host_v = hosts_after(host_E[u], on_EN[u], i, j), hosts_after(host_E[v], on_EN[v], i, j)
        moved_u, moved_v = host_u != host_E[u], host_v != host_E[v]
        # what moving slots costs more
        leave = costs.stay_GE[r, u] - costs.stay_GE[r, v]
        if not replace:
            leave += costs.stay_GE[s, v] - costs.stay_GE[s, u]
        # sends after the move, of the sets of u alone and of v alone
        change = 0
        if moved_u:
            change += change_of_sends(u, host_u, tables, books)
        if moved_v:
            change += change_of_sends(v, host_v, tables, books)
        # sets that hold both seldom let sends rise less: is this move hopeless, however it may balance the loads?
        nodes = host_E[u] | host_u | host_E[v] | host_v
        lone = not replace and copies_E[u] == 1 and copies_E[v] == 1 and not node_capped
        if not node_capped:
            saved = floors.swap_G[r] + floors.swap_G[s]
            if not lone:
                saved = most_saved(u, v, r, s, nodes, uneven, holds_EG, costs, floors)
            if change * per_send + leave - saved > threshold:
                book_slots(u, v, i, j, r, s, replace, UNDO, on_EN, holds_EG)
                continue
        # imbalance after the move
        if lone:
            after = cost_of_swap(u, v, r, s, load_GB, costs, floors, peak_B)
        else:
            _measure_more(u, host_u, v, host_v, nodes, tables, costs, room)
            after = cost_after(load_GB, peak_NB, nodes, u, more_u_G, v, more_v_G, costs, peak_B)
        excess = threshold + uneven - after - leave
        # the sets that hold both, exactly
        if change * per_send <= excess and moved_u and moved_v:
            change += change_of_both(u, host_u, v, host_v, inc, tables, books)
        if change * per_send > excess:
            book_slots(u, v, i, j, r, s, replace, UNDO, on_EN, holds_EG)
            continue
        # the move is accepted: keep the map and its hosts
        phy2log_P[p] = v
        if replace:
            copies_E[u] -= 1
            copies_E[v] += 1
        else:
            phy2log_P[q] = u
        if lone:
            _measure_more(u, host_u, v, host_v, nodes, tables, costs, room)
        host_E[u], host_E[v] = host_u, host_v
        # keep loads, peaks and bounds
        add_load(load_GB, u, more_u_G, nodes, costs)
        add_load(load_GB, v, more_v_G, nodes, costs)
        measure_peaks(load_GB, nodes, costs, peak_NB)
        spread(share_u_N, on_EN[u], holds_EG[u], nodes, costs, part_EG[u])
        spread(share_v_N, on_EN[v], holds_EG[v], nodes, costs, part_EG[v])
        measure_floors(load_GB, peak_NB, costs, floors, peak_B)
        uneven = after
        sends += change
        moved += leave
        # keep the states of the sets of experts that changed nodes
        for step in range(2):
            if moved_u if step == 0 else moved_v:
                changes += 1
                e = u if step == 0 else v
                for x in range(inc.expert_ptr[e], inc.expert_ptr[e + 1]):
                    update_states(int(np.int64(inc.expert_sets[x])), inc, tables, books)
        due = changes >= REFRESH or sends * per_send + moved + uneven < best - LEAST_GAIN
    copy_row(best_P, phy2log_P)
    return best


@inner_kernel
def _measure_more(
    u: int,
    host_u: np.uint64,
    v: int,
    host_v: np.uint64,
    nodes: np.uint64,
    tables: Families,
    costs: Costs,
    room: FamilyRoom,
) -> None:
    """Shares of load of u and v on their new hosts, and what each then adds to ranks of `nodes` beyond what it does."""
    shares_of_load(u, host_u, tables, room.books, room.share_u_N)
    shares_of_load(v, host_v, tables, room.books, room.share_v_N)
    spread_more(room.share_u_N, room.on_EN[u], room.holds_EG[u], nodes, costs, room.part_EG[u], room.more_u_G)
    spread_more(room.share_v_N, room.on_EN[v], room.holds_EG[v], nodes, costs, room.part_EG[v], room.more_v_G)
