"""Simulated annealing of slot contents where experts may have several copies (replica choice `min-nodes`).

Changes of sends are exact (`replica_sends`). Which share of an expert's load each of its nodes serves is measured
exactly at refreshes, rarer where they cost more; between, the shares of a moved expert are estimated from its own
sets. The best map is taken at refreshes, where its cost is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.cost.covers import MAX_COVERS, popcount
from placement.solvers.annealing.anneal_common import (
    Balance,
    Incidence,
    copy_row,
    cost_of_moves,
    random_below,
    random_unit,
    random_word,
    total_of,
)
from placement.solvers.annealing.replica_answers import Answers, no_answers, place_of_answer
from placement.solvers.annealing.replica_loads import add_load, cost_after, measure_peaks, measure_shares, spread
from placement.solvers.annealing.replica_sends import MOST_OPEN, NOBODY, Rest, no_rest, sends_of_set, update_set
from placement.support.inner_kernel import inner_kernel

REFRESH = 64  # accepted moves between refreshes, at least
REFRESH_WORK = 192  # pairs of sets and nodes for each move more
BOOK: int = np.int64(1)  # type: ignore[assignment]
UNDO: int = np.int64(-1)  # type: ignore[assignment]
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


class Room(NamedTuple):
    """What a search writes to. numpy makes the arrays: numba would compile a function for each kind of them."""

    state: npt.NDArray[np.uint64]
    scratch: npt.NDArray[np.uint64]
    cover_S: npt.NDArray[np.int64]
    covers: npt.NDArray[np.uint64]
    on_EN: npt.NDArray[np.int64]
    holds_EG: npt.NDArray[np.int64]
    copies_E: npt.NDArray[np.int64]
    host_E: npt.NDArray[np.uint64]
    sends_U: npt.NDArray[np.int64]
    share_EN: npt.NDArray[np.float64]
    part_EG: npt.NDArray[np.float64]
    more_u_G: npt.NDArray[np.float64]
    more_v_G: npt.NDArray[np.float64]
    load_GB: npt.NDArray[np.float64]
    peak_B: npt.NDArray[np.float64]
    peak_NB: npt.NDArray[np.float64]
    best_P: npt.NDArray[np.int32]
    rest: Rest
    answers: Answers


def anneal_replicas(
    phy2log_P: npt.NDArray[np.int32],
    inc: Incidence,
    bal: Balance,
    hot: float,
    cold: float,
    moves: int,
    seed: np.uint64,
) -> float:
    """Anneal `phy2log_P` in place from temperature `hot` to `cold` (sends per token); returns the best cost seen.

    Moves: swap two slots on different ranks; or give a slot of an expert with several copies to another expert.
    """
    num_experts, num_boots = bal.load_EB.shape
    num_nodes = bal.num_nodes
    num_ranks = num_nodes * bal.gpus_per_node
    num_sets, top_k = inc.sets_UK.shape
    subsets = 1 << min(top_k, MOST_OPEN)
    room = Room(
        state=np.array([seed], dtype=np.uint64),
        scratch=np.zeros((2, max(subsets, top_k, 3)), dtype=np.uint64),
        cover_S=np.zeros(subsets, dtype=np.int64),
        covers=np.empty(MAX_COVERS, dtype=np.uint64),
        on_EN=np.zeros((num_experts, num_nodes), dtype=np.int64),
        holds_EG=np.zeros((num_experts, num_ranks), dtype=np.int64),
        copies_E=np.zeros(num_experts, dtype=np.int64),
        host_E=np.zeros(num_experts, dtype=np.uint64),
        sends_U=np.zeros(num_sets, dtype=np.int64),
        share_EN=np.zeros((num_experts, num_nodes)),
        part_EG=np.zeros((num_experts, num_ranks)),
        more_u_G=np.zeros(num_ranks),
        more_v_G=np.zeros(num_ranks),
        load_GB=np.zeros((num_ranks, num_boots)),
        peak_B=np.zeros(num_boots),
        peak_NB=np.zeros((num_nodes, num_boots)),
        best_P=phy2log_P.copy(),
        rest=no_rest(inc.expert_sets.shape[0]),
        answers=no_answers(num_experts, num_nodes),
    )
    return float(replicas_kernel(phy2log_P, inc, bal, room, hot, cold, moves))


@nb.njit(cache=True, nogil=True)
def replicas_kernel(
    phy2log_P: npt.NDArray[np.int32], inc: Incidence, bal: Balance, room: Room, hot: float, cold: float, moves: int
) -> float:
    """`anneal_replicas` in the room that it makes."""
    num_experts = bal.load_EB.shape[0]
    num_nodes = bal.num_nodes
    num_slots = phy2log_P.shape[0]
    slots_per_node = bal.slots_per_gpu * bal.gpus_per_node
    num_sets, top_k = inc.sets_UK.shape
    per_send = total_of(bal.fare_HX[num_nodes]) / bal.fare_HX.shape[1] / max(num_nodes - 1, 1)
    state, scratch, cover_S, covers, on_EN, holds_EG, copies_E, host_E, sends_U, share_EN, part_EG = room[:11]
    more_u_G, more_v_G, load_GB, peak_B, peak_NB, best_P, rest, answers = room[11:]
    random_word(state)
    for p in range(num_slots):
        e = phy2log_P[p]
        on_EN[e, p // slots_per_node] += 1
        holds_EG[e, p // bal.slots_per_gpu] += 1
        copies_E[e] += 1
        host_E[e] |= _ONE << np.uint64(p // slots_per_node)
    sends = 0
    for t in range(num_sets):
        update_set(t, inc, rest, sends_U, host_E, num_nodes, scratch, cover_S)
        sends += inc.count_U[t] * sends_U[t]
    all_nodes = ~_ZERO >> np.uint64(64 - num_nodes)
    uneven = 0.0
    moved = cost_of_moves(phy2log_P, bal)
    best = np.inf
    accepted = 0
    interval = max(REFRESH, num_sets * num_nodes // REFRESH_WORK)
    due = True
    cooling = (cold / hot) ** (1.0 / max(moves - 1, 1))
    temperature = hot
    for move in range(moves + 1):
        if due or move == moves:
            measure_shares(inc, host_E, num_nodes, share_EN, scratch, covers)
            load_GB[:] = 0.0
            for e in range(num_experts):
                spread(share_EN[e], on_EN[e], holds_EG[e], host_E[e], bal, part_EG[e])
                add_load(load_GB, e, part_EG[e], host_E[e], bal)
            measure_peaks(load_GB, all_nodes, bal, peak_NB)
            uneven = cost_after(load_GB, peak_NB, _ZERO, NOBODY, more_u_G, NOBODY, more_u_G, bal, peak_B)
            if sends * per_send + moved + uneven < best - 1e-12:
                best = sends * per_send + moved + uneven
                copy_row(phy2log_P, best_P)
            due = False
        if move == moves:
            break
        threshold = -temperature * np.log(random_unit(state))
        temperature *= cooling
        p = random_below(state, num_slots)
        q = random_below(state, num_slots)
        if move % 2:  # half of the proposals bring an expert to a node that hosts others of its sets
            q = _slot_of_fellow(p, phy2log_P, inc, host_E, slots_per_node, state)
        u, v = int(np.int64(phy2log_P[p])), int(np.int64(phy2log_P[q]))  # of one type, whatever the arrays hold
        r, s = p // bal.slots_per_gpu, q // bal.slots_per_gpu
        replace = random_word(state) & _ONE == _ZERO
        if u == v or holds_EG[v, r]:
            continue
        i, j = r // bal.gpus_per_node, s // bal.gpus_per_node
        if replace:
            if copies_E[u] == 1:
                continue
        elif r == s or holds_EG[u, s]:
            continue
        # after the move u has left slot p (for q), v has come to slot p (from q)
        _shift(u, v, i, j, r, s, replace, BOOK, on_EN, holds_EG)
        host_u, host_v = _mask(host_E[u], on_EN[u], i, j), _mask(host_E[v], on_EN[v], i, j)
        moved_u, moved_v = host_u != host_E[u], host_v != host_E[v]
        share_u_N, share_v_N = share_EN[u], share_EN[v]
        leave = bal.stay_GE[r, u] - bal.stay_GE[r, v]
        if not replace:
            leave += bal.stay_GE[s, v] - bal.stay_GE[s, u]
        change = 0
        if moved_u:
            a = place_of_answer(u, host_u, answers, inc, rest, sends_U, host_E, num_nodes, scratch, cover_S)
            change += answers.change_EA[u, a]
            share_u_N = answers.share_EAN[u, a]
        if moved_v:
            a = place_of_answer(v, host_v, answers, inc, rest, sends_U, host_E, num_nodes, scratch, cover_S)
            change += answers.change_EA[v, a]
            share_v_N = answers.share_EAN[v, a]
        nodes = host_E[u] | host_u | host_E[v] | host_v
        _spread_more(share_u_N, on_EN[u], holds_EG[u], nodes, bal, part_EG[u], more_u_G)
        _spread_more(share_v_N, on_EN[v], holds_EG[v], nodes, bal, part_EG[v], more_v_G)
        after = cost_after(load_GB, peak_NB, nodes, u, more_u_G, v, more_v_G, bal, peak_B)
        excess = threshold + uneven - after - leave
        # sets that hold both were counted as if only one moved; that seldom overstates the change, so it comes last
        if change * per_send <= excess and moved_u and moved_v:
            change += _change_of_both(u, host_u, v, host_v, inc, sends_U, host_E, num_nodes, scratch, cover_S)
        if change * per_send > excess:
            _shift(u, v, i, j, r, s, replace, UNDO, on_EN, holds_EG)
            continue
        phy2log_P[p] = v
        if replace:
            copies_E[u] -= 1
            copies_E[v] += 1
        else:
            phy2log_P[q] = u
        host_E[u], host_E[v] = host_u, host_v
        for n in range(num_nodes):
            share_EN[u, n], share_EN[v, n] = share_u_N[n], share_v_N[n]
        add_load(load_GB, u, more_u_G, nodes, bal)
        add_load(load_GB, v, more_v_G, nodes, bal)
        measure_peaks(load_GB, nodes, bal, peak_NB)
        spread(share_u_N, on_EN[u], holds_EG[u], nodes, bal, part_EG[u])
        spread(share_v_N, on_EN[v], holds_EG[v], nodes, bal, part_EG[v])
        uneven = after
        sends += change
        moved += leave
        for step in range(2):
            e = u if step == 0 else v
            if not (moved_u if step == 0 else moved_v):
                continue
            for x in range(inc.expert_ptr[e], inc.expert_ptr[e + 1]):
                t = int(np.int64(inc.expert_sets[x]))
                update_set(t, inc, rest, sends_U, host_E, num_nodes, scratch, cover_S)
                for k in range(top_k):
                    answers.version_E[inc.sets_UK[t, k]] += 1
        accepted += 1
        due = accepted % interval == 0
    copy_row(best_P, phy2log_P)
    return best


@inner_kernel
def _change_of_both(
    u: int,
    host_u: np.uint64,
    v: int,
    host_v: np.uint64,
    inc: Incidence,
    sends_U: npt.NDArray[np.int64],
    host_E: npt.NDArray[np.uint64],
    num_nodes: int,
    scratch: npt.NDArray[np.uint64],
    cover_S: npt.NDArray[np.int64],
) -> int:
    """What is to be added to the changes of u alone and of v alone for the sets that hold both."""
    row = min(u, v) * host_E.shape[0] + max(u, v)
    total = 0
    for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
        t = int(np.int64(inc.pair_sets[x]))
        both = sends_of_set(t, u, host_u, v, host_v, inc, host_E, num_nodes, scratch, cover_S)
        one = sends_of_set(t, u, host_u, NOBODY, _ZERO, inc, host_E, num_nodes, scratch, cover_S)
        two = sends_of_set(t, v, host_v, NOBODY, _ZERO, inc, host_E, num_nodes, scratch, cover_S)
        total += inc.count_U[t] * (both - one - two + sends_U[t])
    return total


@inner_kernel
def _slot_of_fellow(
    p: int,
    phy2log_P: npt.NDArray[np.int32],
    inc: Incidence,
    host_E: npt.NDArray[np.uint64],
    slots_per_node: int,
    state: npt.NDArray[np.uint64],
) -> int:
    """A slot of an expert that is in a set with one on the node of slot p, both drawn at random."""
    other = p - p % slots_per_node + random_below(state, slots_per_node)
    e = phy2log_P[other]
    start, stop = inc.expert_ptr[e], inc.expert_ptr[e + 1]
    if start == stop:
        return other
    v = inc.sets_UK[
        inc.expert_sets[start + random_below(state, stop - start)], random_below(state, inc.sets_UK.shape[1])
    ]
    hosts = host_E[v]
    for _ in range(random_below(state, popcount(hosts))):
        hosts &= hosts - _ONE
    first = popcount((hosts & (~hosts + _ONE)) - _ONE) * slots_per_node
    for q in range(first, first + slots_per_node):
        if phy2log_P[q] == v:
            return q
    return other


@nb.njit(cache=True, nogil=True, inline="always")
def _mask(host: np.uint64, on_N: npt.NDArray[np.int64], i: int, j: int) -> np.uint64:
    """The nodes of an expert whose copies on nodes i and j may have changed."""
    for n in (i, j):
        bit = _ONE << np.uint64(n)
        host = host | bit if on_N[n] > 0 else host & ~bit
    return host


@inner_kernel
def _spread_more(
    share_N: npt.NDArray[np.float64],
    on_N: npt.NDArray[np.int64],
    holds_G: npt.NDArray[np.int64],
    nodes: np.uint64,
    bal: Balance,
    part_G: npt.NDArray[np.float64],
    more_G: npt.NDArray[np.float64],
) -> None:
    """`spread`, less what the expert adds now."""
    spread(share_N, on_N, holds_G, nodes, bal, more_G)
    while nodes != _ZERO:
        n = popcount((nodes & (~nodes + _ONE)) - _ONE)
        nodes &= nodes - _ONE
        for g in range(n * bal.gpus_per_node, (n + 1) * bal.gpus_per_node):
            more_G[g] -= part_G[g]


@nb.njit(cache=True, nogil=True)
def _shift(
    u: int,
    v: int,
    i: int,
    j: int,
    r: int,
    s: int,
    replace: bool,
    sign: int,
    on_EN: npt.NDArray[np.int64],
    holds_EG: npt.NDArray[np.int64],
) -> None:
    """BOOK or UNDO that v takes u's slot on rank r, and u takes v's on rank s unless it is replaced."""
    on_EN[u, i] -= sign
    on_EN[v, i] += sign
    holds_EG[u, r] -= sign
    holds_EG[v, r] += sign
    if not replace:
        on_EN[u, j] += sign
        on_EN[v, j] -= sign
        holds_EG[u, s] += sign
        holds_EG[v, s] -= sign
