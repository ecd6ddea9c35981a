"""Simulated annealing of slot contents where experts may have several copies (replica choice `min-nodes`).

A move's change of sends, and the share of load that each node then serves of the moved experts, come from books of the
sets (`copy_books`) at a cost that hardly grows with the number of sets. The shares of other experts, which the move
changes too, wait for the next refresh. The best map is taken at refreshes, where its cost is exact.
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
from placement.solvers.annealing.busiest_node import beyond_mean
from placement.solvers.annealing.copy_books import (
    Books,
    add_into,
    book_sets,
    books_of,
    change_of_both,
    change_of_sends,
    measure,
    shares_of_load,
    update_expert,
)
from placement.solvers.annealing.guided_moves import guided_copy, guided_swap, hosts_after, slot_of_fellow
from placement.solvers.annealing.peak_floors import Floors, cost_of_swap, measure_floors, most_saved, no_floors
from placement.solvers.annealing.rank_loads import NOBODY, add_load, cost_after, measure_peaks, spread, spread_more
from placement.support.kernel import inner_search_kernel, search_kernel

GUIDED = 4  # one proposal of so many is guided


class CopiesRoom(NamedTuple):
    """What a search writes to. numpy makes the arrays: numba would compile a function for each kind of them."""

    state: Masks
    on_EN: Ints
    holds_EG: Ints
    copies_E: Ints
    share_EN: Floats
    share_u_N: Floats
    share_v_N: Floats
    part_EG: Floats
    more_u_G: Floats
    more_v_G: Floats
    load_GB: Floats
    peak_B: Floats
    peak_NB: Floats
    best_P: Ids
    more_N: Floats
    floors: Floors


def anneal_copies(
    phy2log_P: Ids, inc: Incidence, costs: Costs, hot: float, cold: float, moves: int, seed: np.uint64
) -> float:
    """As `anneal_single`, where experts may have several copies.

    Moves: swap two slots on different ranks; or give a slot of an expert with several copies to another expert.
    """
    num_experts, num_boots = costs.load_EB.shape
    num_nodes = costs.num_nodes
    num_ranks = num_nodes * costs.gpus_per_node
    room = CopiesRoom(
        state=np.array([seed], dtype=np.uint64),
        on_EN=np.zeros((num_experts, num_nodes), dtype=np.int64),
        holds_EG=np.zeros((num_experts, num_ranks), dtype=np.int64),
        copies_E=np.zeros(num_experts, dtype=np.int64),
        share_EN=np.zeros((num_experts, num_nodes)),
        share_u_N=np.zeros(num_nodes),
        share_v_N=np.zeros(num_nodes),
        part_EG=np.zeros((num_experts, num_ranks)),
        more_u_G=np.zeros(num_ranks),
        more_v_G=np.zeros(num_ranks),
        load_GB=np.zeros((num_ranks, num_boots)),
        peak_B=np.zeros(num_boots),
        peak_NB=np.zeros((num_nodes, num_boots)),
        best_P=phy2log_P.copy(),
        more_N=np.zeros(num_nodes),
        floors=no_floors(num_nodes, num_ranks, num_boots),
    )
    books = books_of(num_experts, num_nodes, inc)
    return float(copies_kernel(phy2log_P, costs, books, room, hot, cold, moves))


@search_kernel
def copies_kernel(
    phy2log_P: Ids, costs: Costs, books: Books, room: CopiesRoom, hot: float, cold: float, moves: int
) -> float:
    """`anneal_copies` in the room that it makes."""
    num_experts, num_nodes, num_slots = costs.load_EB.shape[0], costs.num_nodes, phy2log_P.shape[0]
    slots_per_node = costs.slots_per_gpu * costs.gpus_per_node
    per_send = total_of(costs.fare_HX[num_nodes]) / costs.fare_HX.shape[1] / max(num_nodes - 1, 1)
    state, on_EN, holds_EG, copies_E, share_EN, share_u_N, share_v_N, part_EG, more_u_G, more_v_G = room[:10]
    load_GB, peak_B, peak_NB, best_P, more_N, floors = room[10:]
    inc, host_E, asked, into_N = books.inc, books.host_E, books.asked, books.into_N
    busy = costs.busy * per_send
    random_word(state)

    # books of the first map: copies, hosts, sets
    for p in range(num_slots):
        e = phy2log_P[p]
        on_EN[e, p // slots_per_node] += 1
        holds_EG[e, p // costs.slots_per_gpu] += 1
        copies_E[e] += 1
        host_E[e] |= ONE << np.uint64(p // slots_per_node)
    book_sets(books)
    all_nodes = ~ZERO >> np.uint64(64 - num_nodes)
    # objective = sends * per_send + crowd + moved + uneven: sends, what the busiest node gets beyond the mean, moved
    # slots, imbalance and what exceeds the caps
    sends, crowd, uneven = 0.0, 0.0, 0.0
    moved = cost_of_moves(phy2log_P, costs)
    best = np.inf
    node_capped = costs.node_cap < np.inf
    changes, due = 0, True
    cooling = cooling_of(hot, cold, moves)
    temperature = hot
    for move in range(moves + 1):
        if due or move == moves:
            # measure sends and loads exactly, and keep the map if its objective is the lowest so far
            sends = measure(share_EN, books)
            more_N[:] = 0.0
            crowd = busy * beyond_mean(into_N, more_N)
            load_GB[:] = 0.0
            for e in range(num_experts):
                spread(share_EN[e], on_EN[e], holds_EG[e], host_E[e], costs, part_EG[e])
                add_load(load_GB, e, part_EG[e], host_E[e], costs)
            measure_peaks(load_GB, all_nodes, costs, peak_NB)
            measure_floors(load_GB, peak_NB, costs, floors, peak_B)
            uneven = cost_after(load_GB, peak_NB, ZERO, NOBODY, more_u_G, NOBODY, more_u_G, costs, peak_B)
            if sends * per_send + crowd + moved + uneven < best - LEAST_GAIN:
                best = sends * per_send + crowd + moved + uneven
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
                p, q = guided_copy(p, phy2log_P, slots_per_node, copies_E, on_EN, host_E, state, asked)
            else:
                q = guided_swap(p, phy2log_P, slots_per_node, on_EN, host_E, state, asked)
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
            change += change_of_sends(u, host_E[u], host_u, asked)
        if moved_v:
            change += change_of_sends(v, host_E[v], host_v, asked)
        # sets that hold both seldom let sends rise less: is this move hopeless, however it may balance the loads?
        nodes, saved = host_E[u] | host_u | host_E[v] | host_v, 0.0
        lone = not replace and copies_E[u] == 1 and copies_E[v] == 1 and not node_capped
        if not node_capped:
            saved = floors.swap_G[r] + floors.swap_G[s]
            if not lone:
                saved = most_saved(u, v, r, s, nodes, uneven, holds_EG, costs, floors)
            if change * per_send + leave - saved - crowd > threshold:
                book_slots(u, v, i, j, r, s, replace, UNDO, on_EN, holds_EG)
                continue
        # what goes into the busiest node after the move, as if no set held both
        crowd_after = crowd
        if busy > 0.0:
            more_N[:] = 0.0
            if moved_u:
                add_into(u, host_u, more_N, books)
            if moved_v:
                add_into(v, host_v, more_N, books)
            crowd_after = busy * beyond_mean(into_N, more_N)
            if not node_capped and change * per_send + crowd_after - crowd + leave - saved > threshold:
                book_slots(u, v, i, j, r, s, replace, UNDO, on_EN, holds_EG)
                continue
        # imbalance after the move
        if lone:
            after = cost_of_swap(u, v, r, s, load_GB, costs, floors, peak_B)
        else:
            _measure_more(u, host_u, v, host_v, nodes, costs, books, room)
            after = cost_after(load_GB, peak_NB, nodes, u, more_u_G, v, more_v_G, costs, peak_B)
        excess = threshold + uneven - after - leave + crowd - crowd_after
        # the sets that hold both
        if change * per_send <= excess and moved_u and moved_v:
            change += change_of_both(u, host_u, v, host_v, books)
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
            _measure_more(u, host_u, v, host_v, nodes, costs, books, room)
        host_E[u], host_E[v] = host_u, host_v
        # keep shares, loads, peaks and bounds
        for n in range(num_nodes):
            share_EN[u, n], share_EN[v, n] = share_u_N[n], share_v_N[n]
        add_load(load_GB, u, more_u_G, nodes, costs)
        add_load(load_GB, v, more_v_G, nodes, costs)
        measure_peaks(load_GB, nodes, costs, peak_NB)
        spread(share_u_N, on_EN[u], holds_EG[u], nodes, costs, part_EG[u])
        spread(share_v_N, on_EN[v], holds_EG[v], nodes, costs, part_EG[v])
        measure_floors(load_GB, peak_NB, costs, floors, peak_B)
        uneven = after
        sends += change
        crowd = crowd_after
        for n in range(num_nodes):
            into_N[n] += more_N[n]
            more_N[n] = 0.0
        moved += leave
        # keep the books of the sets of experts that changed nodes
        if moved_u:
            update_expert(u, books)
        if moved_v:
            update_expert(v, books)
        changes += moved_u + moved_v if books.quick else 1
        due = changes >= books.refresh or (
            books.quick and sends * per_send + crowd + moved + uneven < best - LEAST_GAIN
        )
    copy_row(best_P, phy2log_P)
    return best


@inner_search_kernel
def _measure_more(
    u: int, host_u: np.uint64, v: int, host_v: np.uint64, nodes: np.uint64, costs: Costs, books: Books, room: CopiesRoom
) -> None:
    """Shares of load of u and v on their new hosts, and what each then adds to ranks of `nodes` beyond what it does."""
    share_u_N, share_v_N = room.share_u_N, room.share_v_N
    if host_u != books.host_E[u]:
        shares_of_load(u, host_u, share_u_N, books)
    else:
        copy_shares(room.share_EN[u], share_u_N)
    if host_v != books.host_E[v]:
        shares_of_load(v, host_v, share_v_N, books)
    else:
        copy_shares(room.share_EN[v], share_v_N)
    spread_more(share_u_N, room.on_EN[u], room.holds_EG[u], nodes, costs, room.part_EG[u], room.more_u_G)
    spread_more(share_v_N, room.on_EN[v], room.holds_EG[v], nodes, costs, room.part_EG[v], room.more_v_G)


@inner_search_kernel
def copy_shares(source_N: Floats, target_N: Floats) -> None:
    """`target_N[:] = source_N`, without numba's check of shapes."""
    for n in range(source_N.shape[0]):
        target_N[n] = source_N[n]
