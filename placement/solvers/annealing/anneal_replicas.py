"""Simulated annealing of slot contents where experts may have several copies (replica choice `min-nodes`).

Changes of sends are exact (`replica_sends`). Which share of an expert's load each of its nodes serves is measured
exactly at refreshes, rarer where they cost more; between, the shares of a moved expert are estimated from its own
sets. The best map is taken at refreshes, where its cost is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from placement.cost.covers import MAX_COVERS
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
from placement.solvers.annealing.guided_moves import hosts_after, slot_of_fellow
from placement.solvers.annealing.replica_answers import Answers, no_answers, place_of_answer
from placement.solvers.annealing.replica_loads import (
    add_load,
    cost_after,
    measure_peaks,
    measure_shares,
    spread,
    spread_more,
)
from placement.solvers.annealing.replica_sends import NOBODY, Hosts, Rest, no_hosts, no_rest, sends_of_set, update_set
from placement.support.kernel import inner_kernel, kernel

REFRESH = 64  # fewest accepted moves between refreshes
REFRESH_WORK = 192  # one further move for each so many pairs of a set and a node


class ReplicaRoom(NamedTuple):
    """What a search writes to. numpy makes the arrays: numba would compile a function for each kind of them."""

    state: Masks
    covers: Masks
    on_EN: Ints
    holds_EG: Ints
    copies_E: Ints
    sends_U: Ints
    share_EN: Floats
    part_EG: Floats
    more_u_G: Floats
    more_v_G: Floats
    load_GB: Floats
    peak_B: Floats
    peak_NB: Floats
    best_P: Ids
    hosts: Hosts
    rest: Rest
    answers: Answers


def anneal_replicas(
    phy2log_P: Ids, inc: Incidence, costs: Costs, hot: float, cold: float, moves: int, seed: np.uint64
) -> float:
    """As `anneal_single`, where experts may have several copies.

    Moves: swap two slots on different ranks; or give a slot of an expert with several copies to another expert.
    """
    num_experts, num_boots = costs.load_EB.shape
    num_nodes = costs.num_nodes
    num_ranks = num_nodes * costs.gpus_per_node
    num_sets, top_k = inc.sets_UK.shape
    room = ReplicaRoom(
        state=np.array([seed], dtype=np.uint64),
        covers=np.empty(MAX_COVERS, dtype=np.uint64),
        on_EN=np.zeros((num_experts, num_nodes), dtype=np.int64),
        holds_EG=np.zeros((num_experts, num_ranks), dtype=np.int64),
        copies_E=np.zeros(num_experts, dtype=np.int64),
        sends_U=np.zeros(num_sets, dtype=np.int64),
        share_EN=np.zeros((num_experts, num_nodes)),
        part_EG=np.zeros((num_experts, num_ranks)),
        more_u_G=np.zeros(num_ranks),
        more_v_G=np.zeros(num_ranks),
        load_GB=np.zeros((num_ranks, num_boots)),
        peak_B=np.zeros(num_boots),
        peak_NB=np.zeros((num_nodes, num_boots)),
        best_P=phy2log_P.copy(),
        hosts=no_hosts(num_experts, num_nodes, top_k),
        rest=no_rest(inc.expert_sets.shape[0]),
        answers=no_answers(num_experts, num_nodes),
    )
    return float(replicas_kernel(phy2log_P, inc, costs, room, hot, cold, moves))


@kernel
def replicas_kernel(
    phy2log_P: Ids, inc: Incidence, costs: Costs, room: ReplicaRoom, hot: float, cold: float, moves: int
) -> float:
    """`anneal_replicas` in the room that it makes."""
    num_experts = costs.load_EB.shape[0]
    num_nodes = costs.num_nodes
    num_slots = phy2log_P.shape[0]
    slots_per_node = costs.slots_per_gpu * costs.gpus_per_node
    num_sets, top_k = inc.sets_UK.shape
    per_send = total_of(costs.fare_HX[num_nodes]) / costs.fare_HX.shape[1] / max(num_nodes - 1, 1)
    state, covers, on_EN, holds_EG, copies_E, sends_U, share_EN, part_EG, more_u_G, more_v_G = room[:10]
    load_GB, peak_B, peak_NB, best_P, hosts, rest, answers = room[10:]
    host_E, scratch = hosts.host_E, hosts.scratch
    random_word(state)

    # books of the first map: copies, hosts, sends
    for p in range(num_slots):
        e = phy2log_P[p]
        on_EN[e, p // slots_per_node] += 1
        holds_EG[e, p // costs.slots_per_gpu] += 1
        copies_E[e] += 1
        host_E[e] |= ONE << np.uint64(p // slots_per_node)
    sends = 0
    for t in range(num_sets):
        update_set(t, inc, rest, sends_U, hosts)
        sends += inc.count_U[t] * sends_U[t]
    all_nodes = ~ZERO >> np.uint64(64 - num_nodes)
    # objective = sends * per_send + moved + uneven: sends, moved slots, imbalance and what exceeds the caps
    uneven = 0.0
    moved = cost_of_moves(phy2log_P, costs)
    best = np.inf
    accepted = 0
    interval = max(REFRESH, num_sets * num_nodes // REFRESH_WORK)
    due = True
    cooling = cooling_of(hot, cold, moves)
    temperature = hot
    for move in range(moves + 1):
        if due or move == moves:
            # measure loads exactly, and keep the map if its objective is the lowest so far
            measure_shares(inc, host_E, num_nodes, share_EN, scratch, covers)
            load_GB[:] = 0.0
            for e in range(num_experts):
                spread(share_EN[e], on_EN[e], holds_EG[e], host_E[e], costs, part_EG[e])
                add_load(load_GB, e, part_EG[e], host_E[e], costs)
            measure_peaks(load_GB, all_nodes, costs, peak_NB)
            uneven = cost_after(load_GB, peak_NB, ZERO, NOBODY, more_u_G, NOBODY, more_u_G, costs, peak_B)
            if sends * per_send + moved + uneven < best - LEAST_GAIN:
                best = sends * per_send + moved + uneven
                copy_row(phy2log_P, best_P)
            due = False
        if move == moves:
            break
        # the objective may rise by the threshold
        threshold = allowance(temperature, state)
        temperature *= cooling
        # propose that the expert of slot q takes slot p: in a swap, or as a copy in place of p's expert
        p = random_below(state, num_slots)
        q = random_below(state, num_slots)
        if move % 2:  # half of the proposals bring an expert to a node that hosts others of its sets
            q = slot_of_fellow(p, phy2log_P, inc, host_E, slots_per_node, state)
        u, v = int(np.int64(phy2log_P[p])), int(np.int64(phy2log_P[q]))  # one type of number, whatever the arrays hold
        r, s = p // costs.slots_per_gpu, q // costs.slots_per_gpu
        replace = random_word(state) & ONE == ZERO
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
        share_u_N, share_v_N = share_EN[u], share_EN[v]
        # what moving slots costs more
        leave = costs.stay_GE[r, u] - costs.stay_GE[r, v]
        if not replace:
            leave += costs.stay_GE[s, v] - costs.stay_GE[s, u]
        # sends and shares of load after the move, of u alone and of v alone
        change = 0
        if moved_u:
            a = place_of_answer(u, host_u, answers, inc, rest, sends_U, hosts)
            change += answers.change_EA[u, a]
            share_u_N = answers.share_EAN[u, a]
        if moved_v:
            a = place_of_answer(v, host_v, answers, inc, rest, sends_U, hosts)
            change += answers.change_EA[v, a]
            share_v_N = answers.share_EAN[v, a]
        # imbalance after the move
        nodes = host_E[u] | host_u | host_E[v] | host_v
        spread_more(share_u_N, on_EN[u], holds_EG[u], nodes, costs, part_EG[u], more_u_G)
        spread_more(share_v_N, on_EN[v], holds_EG[v], nodes, costs, part_EG[v], more_v_G)
        after = cost_after(load_GB, peak_NB, nodes, u, more_u_G, v, more_v_G, costs, peak_B)
        excess = threshold + uneven - after - leave
        # sets that hold both were counted as if only one moved; that seldom overstates the change, so it comes last
        if change * per_send <= excess and moved_u and moved_v:
            change += _change_of_both(u, host_u, v, host_v, inc, sends_U, hosts)
        if change * per_send > excess:
            book_slots(u, v, i, j, r, s, replace, UNDO, on_EN, holds_EG)
            continue
        # the move is accepted: keep the map, its hosts and shares
        phy2log_P[p] = v
        if replace:
            copies_E[u] -= 1
            copies_E[v] += 1
        else:
            phy2log_P[q] = u
        host_E[u], host_E[v] = host_u, host_v
        for n in range(num_nodes):
            share_EN[u, n], share_EN[v, n] = share_u_N[n], share_v_N[n]
        # keep loads and peaks
        add_load(load_GB, u, more_u_G, nodes, costs)
        add_load(load_GB, v, more_v_G, nodes, costs)
        measure_peaks(load_GB, nodes, costs, peak_NB)
        spread(share_u_N, on_EN[u], holds_EG[u], nodes, costs, part_EG[u])
        spread(share_v_N, on_EN[v], holds_EG[v], nodes, costs, part_EG[v])
        uneven = after
        sends += change
        moved += leave
        # keep the sends of the sets of experts whose hosts changed; answers about their members are stale
        for step in range(2):
            e = u if step == 0 else v
            if not (moved_u if step == 0 else moved_v):
                continue
            for x in range(inc.expert_ptr[e], inc.expert_ptr[e + 1]):
                t = int(np.int64(inc.expert_sets[x]))
                update_set(t, inc, rest, sends_U, hosts)
                for k in range(top_k):
                    answers.version_E[inc.sets_UK[t, k]] += 1
        accepted += 1
        due = accepted % interval == 0
    copy_row(best_P, phy2log_P)
    return best


@inner_kernel
def _change_of_both(
    u: int, host_u: np.uint64, v: int, host_v: np.uint64, inc: Incidence, sends_U: Ints, hosts: Hosts
) -> int:
    """What is to be added to the changes of u alone and of v alone for the sets that hold both."""
    row = min(u, v) * hosts.host_E.shape[0] + max(u, v)
    total = 0
    for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
        t = int(np.int64(inc.pair_sets[x]))
        both = sends_of_set(t, u, host_u, v, host_v, inc, hosts)
        one = sends_of_set(t, u, host_u, NOBODY, ZERO, inc, hosts)
        two = sends_of_set(t, v, host_v, NOBODY, ZERO, inc, hosts)
        total += inc.count_U[t] * (both - one - two + sends_U[t])
    return total
