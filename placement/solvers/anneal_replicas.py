"""Simulated annealing of slot contents where experts may have several copies (replica choice `min-nodes`).

Changes of sends are exact (`replica_sends`). Which share of an expert's load each of its nodes serves is measured
exactly at refreshes, rarer where they cost more; between, the shares of a moved expert are estimated from its own
sets. The best map is taken at refreshes, where its cost is exact.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.cost.covers import MAX_COVERS
from placement.solvers.anneal_common import Balance, Incidence, cost_of_moves, random_below, random_unit, random_word
from placement.solvers.replica_loads import add_load, cost_of_loads, estimate_shares, measure_shares
from placement.solvers.replica_sends import MOST_OPEN, Rest, change_of, sends_of_set, update_set

REFRESH = 64  # accepted moves between refreshes, at least
REFRESH_WORK = 192  # pairs of sets and nodes for each move more
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@nb.njit(cache=True, nogil=True)
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
    num_slots = phy2log_P.shape[0]
    slots_per_node = bal.slots_per_gpu * bal.gpus_per_node
    num_ranks = num_nodes * bal.gpus_per_node
    sets = inc.sets_UK
    num_sets, top_k = sets.shape
    per_send = bal.fare_X.mean() / max(num_nodes - 1, 1)
    state = np.empty(1, dtype=np.uint64)
    state[0] = seed
    random_word(state)
    subsets = 1 << min(top_k, MOST_OPEN)
    scratch = np.zeros((2, max(subsets, top_k, 3)), dtype=np.uint64)
    cover_S = np.zeros(subsets, dtype=np.int64)
    covers = np.empty(MAX_COVERS, dtype=np.uint64)

    on_EN = np.zeros((num_experts, num_nodes), dtype=np.int64)
    holds_GE = np.zeros((num_ranks, num_experts), dtype=np.int64)
    copies_E = np.zeros(num_experts, dtype=np.int64)
    host_E = np.zeros(num_experts, dtype=np.uint64)
    for p in range(num_slots):
        e = phy2log_P[p]
        on_EN[e, p // slots_per_node] += 1
        holds_GE[p // bal.slots_per_gpu, e] += 1
        copies_E[e] += 1
        host_E[e] |= _ONE << np.uint64(p // slots_per_node)
    size = inc.expert_sets.shape[0]
    rest = Rest(
        np.empty(size, dtype=np.uint64),
        np.empty(size, dtype=np.uint64),
        np.empty(size, dtype=np.uint64),
        np.empty(size, dtype=np.int64),
        np.empty(size, dtype=np.int64),
    )
    sends_U = np.zeros(num_sets, dtype=np.int64)
    saving_E = np.zeros(num_experts, dtype=np.int64)
    sends = 0
    for t in range(num_sets):
        update_set(t, inc, rest, sends_U, saving_E, host_E, num_nodes, scratch, cover_S, True)
        sends += inc.count_U[t] * sends_U[t]
    share_EN = np.zeros((num_experts, num_nodes))
    new_u = np.zeros(num_nodes)
    new_v = np.zeros(num_nodes)
    load_GB = np.zeros((num_ranks, num_boots))
    trial_GB = np.zeros((num_ranks, num_boots))
    peak_B = np.zeros(num_boots)
    uneven = 0.0
    moved = cost_of_moves(phy2log_P, bal)
    best = np.inf
    best_P = phy2log_P.copy()
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
                add_load(e, 1.0, share_EN[e], on_EN, holds_GE, bal, load_GB)
            uneven = cost_of_loads(load_GB, bal, peak_B)
            if sends * per_send + moved + uneven < best - 1e-12:
                best = sends * per_send + moved + uneven
                best_P[:] = phy2log_P
            due = False
        if move == moves:
            break
        threshold = -temperature * np.log(random_unit(state))
        temperature *= cooling
        p = random_below(state, num_slots)
        q = random_below(state, num_slots)
        u, v = int(phy2log_P[p]), int(phy2log_P[q])
        r, s = p // bal.slots_per_gpu, q // bal.slots_per_gpu
        replace = random_word(state) & _ONE == _ZERO
        if u == v or holds_GE[r, v]:
            continue
        i, j = r // bal.gpus_per_node, s // bal.gpus_per_node
        if replace:
            if copies_E[u] == 1:
                continue
            j = i
        elif r == s or holds_GE[s, u]:
            continue
        # masks after the move: u leaves slot p (for q), v enters slot p (from q)
        host_u, host_v = host_E[u], host_E[v] | (_ONE << np.uint64(i))
        if replace:
            if on_EN[u, i] == 1:
                host_u ^= _ONE << np.uint64(i)
        elif i != j:
            if on_EN[u, i] == 1:
                host_u ^= _ONE << np.uint64(i)
            host_u |= _ONE << np.uint64(j)
            if on_EN[v, j] == 1:
                host_v ^= _ONE << np.uint64(j)
        moved_u, moved_v = host_u != host_E[u], host_v != host_E[v]
        leave = bal.stay_GE[r, u] - bal.stay_GE[r, v]
        if not replace:
            leave += bal.stay_GE[s, v] - bal.stay_GE[s, u]
        threshold -= leave
        slack = threshold + uneven - bal.price
        change = 0
        if moved_u:
            change = change_of(u, host_u, inc, rest, sends_U, host_E, num_nodes, scratch, cover_S)
            if (change - (saving_E[v] if moved_v else 0)) * per_send > slack:
                continue
        if moved_v:
            change += change_of(v, host_v, inc, rest, sends_U, host_E, num_nodes, scratch, cover_S)
        if moved_u and moved_v:
            row = min(u, v) * num_experts + max(u, v)
            for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
                t = inc.pair_sets[x]
                both = sends_of_set(t, u, host_u, v, host_v, sets, host_E, num_nodes, scratch, cover_S)
                one = sends_of_set(t, u, host_u, -1, _ZERO, sets, host_E, num_nodes, scratch, cover_S)
                two = sends_of_set(t, v, host_v, -1, _ZERO, sets, host_E, num_nodes, scratch, cover_S)
                change += inc.count_U[t] * (both - one - two + sends_U[t])
        if change * per_send > slack:
            continue
        # loads after the move
        if moved_u:
            estimate_shares(u, host_u, inc, rest, num_nodes, new_u)
        else:
            new_u[:] = share_EN[u]
        if moved_v:
            estimate_shares(v, host_v, inc, rest, num_nodes, new_v)
        else:
            new_v[:] = share_EN[v]
        trial_GB[:] = load_GB
        add_load(u, -1.0, share_EN[u], on_EN, holds_GE, bal, trial_GB)
        add_load(v, -1.0, share_EN[v], on_EN, holds_GE, bal, trial_GB)
        _shift(u, v, i, j, r, s, replace, 1, on_EN, holds_GE)
        add_load(u, 1.0, new_u, on_EN, holds_GE, bal, trial_GB)
        add_load(v, 1.0, new_v, on_EN, holds_GE, bal, trial_GB)
        after = cost_of_loads(trial_GB, bal, peak_B)
        if change * per_send + after - uneven > threshold:
            _shift(u, v, i, j, r, s, replace, -1, on_EN, holds_GE)
            continue
        phy2log_P[p] = v
        if replace:
            copies_E[u] -= 1
            copies_E[v] += 1
        else:
            phy2log_P[q] = u
        host_E[u], host_E[v] = host_u, host_v
        share_EN[u], share_EN[v] = new_u, new_v
        load_GB[:] = trial_GB
        uneven = after
        sends += change
        moved += leave
        for step in range(2):
            e = u if step == 0 else v
            if not (moved_u if step == 0 else moved_v):
                continue
            for x in range(inc.expert_ptr[e], inc.expert_ptr[e + 1]):
                update_set(
                    inc.expert_sets[x],
                    inc,
                    rest,
                    sends_U,
                    saving_E,
                    host_E,
                    num_nodes,
                    scratch,
                    cover_S,
                    False,
                )
        accepted += 1
        due = accepted % interval == 0
    phy2log_P[:] = best_P
    return best


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
    holds_GE: npt.NDArray[np.int64],
) -> None:
    """Book (sign 1) or undo (-1) that v takes u's slot on rank r, and u takes v's on rank s unless it is replaced."""
    on_EN[u, i] -= sign
    on_EN[v, i] += sign
    holds_GE[r, u] -= sign
    holds_GE[r, v] += sign
    if not replace:
        on_EN[u, j] += sign
        on_EN[v, j] -= sign
        holds_GE[s, u] += sign
        holds_GE[s, v] -= sign
