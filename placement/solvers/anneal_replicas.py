"""Simulated annealing of slot contents where experts may have several copies (replica choice `min-nodes`).

A set's sends are the mean over homes of the smallest number of further nodes that cover it. Experts on one node force
that node into the cover; experts on several are open unless a forced node hosts them. For every (set, expert) the
state of the other experts of the set is kept: forced nodes and up to two open masks. The cost of a set under a new
mask of one expert is then a closed form of a few instructions, exact for up to two open masks; the rare others
are covered by enumeration.

Which share of an expert's load each of its nodes serves is measured exactly every REFRESH accepted moves; between, the
shares of a moved expert are estimated from its own sets. The best map is taken at refreshes, where its cost is exact.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.cost.covers import MAX_COVERS, popcount, smallest_covers
from placement.solvers.anneal_common import (
    CAP_PRICE,
    Balance,
    Incidence,
    random_below,
    random_unit,
    random_word,
)

REFRESH = 64
MANY = 3
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


class Rest(NamedTuple):
    """For entry x = (set, expert) of the incidence: the other experts of the set.

    forced, open_1, open_2  node masks; num_open counts open masks, MANY means more than two
    without  N * sends of the set without the expert, int64
    """

    forced: npt.NDArray[np.uint64]
    open_1: npt.NDArray[np.uint64]
    open_2: npt.NDArray[np.uint64]
    num_open: npt.NDArray[np.int64]
    without: npt.NDArray[np.int64]


@nb.njit(cache=True, nogil=True, inline="always")
def _closed_form(forced: np.uint64, a: np.uint64, b: np.uint64, num_open: int, num_nodes: int) -> int:
    """N * sends, given forced nodes and up to two open masks."""
    sends = popcount(forced) * (num_nodes - 1)
    if num_open == 1:
        sends += num_nodes - popcount(a)
    elif num_open == 2:
        shared, union = popcount(a & b), popcount(a | b)
        sends += (union - shared) + (num_nodes - union) * (1 if shared > 0 else 2)
    return sends


@nb.njit(cache=True, nogil=True)
def _sends_slow(
    forced: np.uint64,
    open_M: npt.NDArray[np.uint64],
    num_masks: int,
    num_nodes: int,
    left_M: npt.NDArray[np.uint64],
    covers: npt.NDArray[np.uint64],
) -> int:
    """N * sends of a set from its forced nodes and its open masks, by covering for every home."""
    total = popcount(forced) * (num_nodes - 1)
    for home in range(num_nodes):
        bit = _ONE << np.uint64(home)
        num_left = 0
        for k in range(num_masks):
            if open_M[k] & bit == _ZERO:
                left_M[num_left] = open_M[k]
                num_left += 1
        smallest_covers(left_M, num_left, home, num_nodes, covers)
        total += popcount(covers[0])
    return total


@nb.njit(cache=True, nogil=True)
def _state_of_others(
    t: int, skip: int, sets: npt.NDArray[np.int32], host_E: npt.NDArray[np.uint64]
) -> tuple[np.uint64, np.uint64, np.uint64, int]:
    """(forced, open_1, open_2, num_open) of set t without its member number `skip` (-1: with all)."""
    forced = _ZERO
    for k in range(sets.shape[1]):
        host = host_E[sets[t, k]]
        if k != skip and host & (host - _ONE) == _ZERO:
            forced |= host
    a, b, num_open = _ZERO, _ZERO, 0
    for k in range(sets.shape[1]):
        host = host_E[sets[t, k]]
        if k != skip and host & (host - _ONE) != _ZERO and host & forced == _ZERO:
            if num_open == 0:
                a = host
            elif num_open == 1:
                b = host
            num_open += 1
    return forced, a, b, min(num_open, MANY)


@nb.njit(cache=True, nogil=True)
def _sends_of_set(
    t: int,
    u: int,
    host_u: np.uint64,
    v: int,
    host_v: np.uint64,
    sets: npt.NDArray[np.int32],
    host_E: npt.NDArray[np.uint64],
    num_nodes: int,
    scratch: npt.NDArray[np.uint64],
    covers: npt.NDArray[np.uint64],
) -> int:
    """N * sends of set t if u and v had these masks (0: as if the expert were not in the set)."""
    num_hosts = 0
    forced = _ZERO
    for k in range(sets.shape[1]):
        e = sets[t, k]
        host = host_u if e == u else (host_v if e == v else host_E[e])
        if host & (host - _ONE) == _ZERO:
            forced |= host
        else:
            scratch[0, num_hosts] = host
            num_hosts += 1
    num_open = 0
    for k in range(num_hosts):
        if scratch[0, k] & forced == _ZERO:
            scratch[0, num_open] = scratch[0, k]
            num_open += 1
    if num_open > 2:
        return _sends_slow(forced, scratch[0], num_open, num_nodes, scratch[1], covers)
    return _closed_form(forced, scratch[0, 0], scratch[0, 1], num_open, num_nodes)


@nb.njit(cache=True, nogil=True)
def _change_of(
    u: int,
    host: np.uint64,
    inc: Incidence,
    rest: Rest,
    sends_U: npt.NDArray[np.int64],
    host_E: npt.NDArray[np.uint64],
    num_nodes: int,
    scratch: npt.NDArray[np.uint64],
    covers: npt.NDArray[np.uint64],
) -> int:
    """Change of N * sends over all sets if only expert u got mask `host`."""
    single = host & (host - _ONE) == _ZERO
    total = 0
    for x in range(inc.expert_ptr[u], inc.expert_ptr[u + 1]):
        t = inc.expert_sets[x]
        num_open = rest.num_open[x]
        if num_open == MANY:
            after = _sends_of_set(t, u, host, -1, _ZERO, inc.sets_UK, host_E, num_nodes, scratch, covers)
        else:
            forced, a, b = rest.forced[x], rest.open_1[x], rest.open_2[x]
            if single:
                forced |= host
                if num_open == 2 and b & host != _ZERO:
                    num_open = 1
                    if a & host != _ZERO:
                        num_open = 0
                elif num_open > 0 and a & host != _ZERO:
                    a = b
                    num_open -= 1
                after = _closed_form(forced, a, b, num_open, num_nodes)
            elif host & forced != _ZERO:
                after = _closed_form(forced, a, b, num_open, num_nodes)
            elif num_open == 0:
                after = _closed_form(forced, host, b, 1, num_nodes)
            elif num_open == 1:
                after = _closed_form(forced, a, host, 2, num_nodes)
            else:
                after = _sends_of_set(t, u, host, -1, _ZERO, inc.sets_UK, host_E, num_nodes, scratch, covers)
        total += inc.count_U[t] * (after - sends_U[t])
    return total


@nb.njit(cache=True, nogil=True)
def _update_set(
    t: int,
    inc: Incidence,
    rest: Rest,
    sends_U: npt.NDArray[np.int64],
    saving_E: npt.NDArray[np.int64],
    host_E: npt.NDArray[np.uint64],
    num_nodes: int,
    scratch: npt.NDArray[np.uint64],
    covers: npt.NDArray[np.uint64],
    fresh: bool,
) -> None:
    """Bring set t's sends, its members' rests and their savings up to date with `host_E`."""
    sets = inc.sets_UK
    w = inc.count_U[t]
    before = sends_U[t]
    sends_U[t] = _sends_of_set(t, -1, _ZERO, -1, _ZERO, sets, host_E, num_nodes, scratch, covers)
    for k in range(sets.shape[1]):
        x = inc.entry_UK[t, k]
        e = sets[t, k]
        if not fresh:
            saving_E[e] -= w * (before - rest.without[x])
        forced, a, b, num_open = _state_of_others(t, k, sets, host_E)
        rest.forced[x], rest.open_1[x], rest.open_2[x], rest.num_open[x] = forced, a, b, num_open
        if num_open == MANY:
            rest.without[x] = _sends_of_set(t, e, _ZERO, -1, _ZERO, sets, host_E, num_nodes, scratch, covers)
        else:
            rest.without[x] = _closed_form(forced, a, b, num_open, num_nodes)
        saving_E[e] += w * (sends_U[t] - rest.without[x])


@nb.njit(cache=True, nogil=True)
def _measure_shares(
    inc: Incidence,
    host_E: npt.NDArray[np.uint64],
    num_nodes: int,
    share_EN: npt.NDArray[np.float64],
    scratch: npt.NDArray[np.uint64],
    covers: npt.NDArray[np.uint64],
) -> None:
    """The share of each expert's assignments that each of its nodes serves, exact under `min-nodes`."""
    sets = inc.sets_UK
    top_k = sets.shape[1]
    num_experts = host_E.shape[0]
    share_EN[:] = 0.0
    for t in range(sets.shape[0]):
        several = False
        forced = _ZERO
        for k in range(top_k):
            host = host_E[sets[t, k]]
            if host & (host - _ONE) != _ZERO:
                several = True
            else:
                forced |= host
        if not several:
            continue
        w = inc.count_U[t] / num_nodes
        for home in range(num_nodes):
            bit = _ONE << np.uint64(home)
            num_open = 0
            for k in range(top_k):
                host = host_E[sets[t, k]]
                if host & (forced | bit) == _ZERO:
                    scratch[0, num_open] = host
                    num_open += 1
            found = smallest_covers(scratch[0], num_open, home, num_nodes, covers)
            for k in range(top_k):
                e = sets[t, k]
                host = host_E[e]
                if host & (host - _ONE) == _ZERO:
                    continue
                if host & bit != _ZERO:
                    share_EN[e, home] += w
                    continue
                for c in range(found):
                    usable = host & (forced | covers[c])
                    part = w / (found * popcount(usable))
                    for n in range(num_nodes):
                        if usable >> np.uint64(n) & _ONE:
                            share_EN[e, n] += part
    for e in range(num_experts):
        total = share_EN[e].sum()
        width = popcount(host_E[e])
        for n in range(num_nodes):
            if host_E[e] >> np.uint64(n) & _ONE:
                share_EN[e, n] = share_EN[e, n] / total if total > 0 and width > 1 else 1.0 / width
            else:
                share_EN[e, n] = 0.0


@nb.njit(cache=True, nogil=True)
def _estimate_shares(
    u: int, host: np.uint64, inc: Incidence, rest: Rest, num_nodes: int, share_N: npt.NDArray[np.float64]
) -> None:
    """The shares of u's nodes if it had mask `host`, from its sets' forced nodes alone."""
    share_N[:] = 0.0
    width = popcount(host)
    if width > 1:
        home_part = 1.0 / num_nodes
        for x in range(inc.expert_ptr[u], inc.expert_ptr[u + 1]):
            w = inc.count_U[inc.expert_sets[x]]
            usable = host & rest.forced[x]
            if usable == _ZERO:
                usable = host
            away = (num_nodes - width) * home_part / popcount(usable)
            for n in range(num_nodes):
                if host >> np.uint64(n) & _ONE:
                    share_N[n] += w * (home_part + (away if usable >> np.uint64(n) & _ONE else 0.0))
    total = share_N.sum()
    for n in range(num_nodes):
        if host >> np.uint64(n) & _ONE:
            share_N[n] = share_N[n] / total if total > 0 else 1.0 / width


@nb.njit(cache=True, nogil=True)
def _add_load(
    e: int,
    sign: float,
    share_N: npt.NDArray[np.float64],
    on_EN: npt.NDArray[np.int64],
    holds_GE: npt.NDArray[np.int64],
    bal: Balance,
    load_GB: npt.NDArray[np.float64],
) -> None:
    """Add (or take away) expert e's load on the ranks that hold it."""
    for n in range(bal.num_nodes):
        if on_EN[e, n] == 0:
            continue
        for g in range(n * bal.gpus_per_node, (n + 1) * bal.gpus_per_node):
            if holds_GE[g, e]:
                part = sign * share_N[n] / on_EN[e, n] * bal.slowness_G[g]
                for b in range(load_GB.shape[1]):
                    load_GB[g, b] += part * bal.load_EB[e, b]


@nb.njit(cache=True, nogil=True)
def _balance_cost(load_GB: npt.NDArray[np.float64], bal: Balance, peak_B: npt.NDArray[np.float64]) -> float:
    peak_B[:] = 0.0
    for g in range(load_GB.shape[0]):
        for b in range(load_GB.shape[1]):
            peak_B[b] = max(peak_B[b], load_GB[g, b])
    return bal.price * peak_B.sum() / peak_B.shape[0] + CAP_PRICE * max(0.0, peak_B[0] - bal.cap)


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
    per_send = 1.0 / (num_nodes * inc.count_U.sum())
    state = np.empty(1, dtype=np.uint64)
    state[0] = seed
    random_word(state)
    scratch = np.zeros((2, max(top_k, 2)), dtype=np.uint64)
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
        _update_set(t, inc, rest, sends_U, saving_E, host_E, num_nodes, scratch, covers, True)
        sends += inc.count_U[t] * sends_U[t]
    share_EN = np.zeros((num_experts, num_nodes))
    new_u = np.zeros(num_nodes)
    new_v = np.zeros(num_nodes)
    load_GB = np.zeros((num_ranks, num_boots))
    trial_GB = np.zeros((num_ranks, num_boots))
    peak_B = np.zeros(num_boots)
    uneven = 0.0
    best = np.inf
    best_P = phy2log_P.copy()
    accepted = 0
    due = True
    cooling = (cold / hot) ** (1.0 / max(moves - 1, 1))
    temperature = hot
    for move in range(moves + 1):
        if due or move == moves:
            _measure_shares(inc, host_E, num_nodes, share_EN, scratch, covers)
            load_GB[:] = 0.0
            for e in range(num_experts):
                _add_load(e, 1.0, share_EN[e], on_EN, holds_GE, bal, load_GB)
            uneven = _balance_cost(load_GB, bal, peak_B)
            if sends * per_send + uneven < best - 1e-12:
                best = sends * per_send + uneven
                best_P[:] = phy2log_P
            due = False
        if move == moves:
            break
        threshold = -temperature * np.log(random_unit(state))
        temperature *= cooling
        p = random_below(state, num_slots)
        q = random_below(state, num_slots)
        u, v = np.int64(phy2log_P[p]), np.int64(phy2log_P[q])
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
        slack = threshold + uneven - bal.price
        change = 0
        if moved_u:
            change = _change_of(u, host_u, inc, rest, sends_U, host_E, num_nodes, scratch, covers)
            if (change - (saving_E[v] if moved_v else 0)) * per_send > slack:
                continue
        if moved_v:
            change += _change_of(v, host_v, inc, rest, sends_U, host_E, num_nodes, scratch, covers)
        if moved_u and moved_v:
            row = min(u, v) * num_experts + max(u, v)
            for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
                t = inc.pair_sets[x]
                both = _sends_of_set(t, u, host_u, v, host_v, sets, host_E, num_nodes, scratch, covers)
                one = _sends_of_set(t, u, host_u, -1, _ZERO, sets, host_E, num_nodes, scratch, covers)
                two = _sends_of_set(t, v, host_v, -1, _ZERO, sets, host_E, num_nodes, scratch, covers)
                change += inc.count_U[t] * (both - one - two + sends_U[t])
        if change * per_send > slack:
            continue
        # loads after the move
        if moved_u:
            _estimate_shares(u, host_u, inc, rest, num_nodes, new_u)
        else:
            new_u[:] = share_EN[u]
        if moved_v:
            _estimate_shares(v, host_v, inc, rest, num_nodes, new_v)
        else:
            new_v[:] = share_EN[v]
        trial_GB[:] = load_GB
        _add_load(u, -1.0, share_EN[u], on_EN, holds_GE, bal, trial_GB)
        _add_load(v, -1.0, share_EN[v], on_EN, holds_GE, bal, trial_GB)
        _shift(u, v, i, j, r, s, replace, 1, on_EN, holds_GE)
        _add_load(u, 1.0, new_u, on_EN, holds_GE, bal, trial_GB)
        _add_load(v, 1.0, new_v, on_EN, holds_GE, bal, trial_GB)
        after = _balance_cost(trial_GB, bal, peak_B)
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
        for step in range(2):
            e = u if step == 0 else v
            if not (moved_u if step == 0 else moved_v):
                continue
            for x in range(inc.expert_ptr[e], inc.expert_ptr[e + 1]):
                _update_set(
                    inc.expert_sets[x],
                    inc,
                    rest,
                    sends_U,
                    saving_E,
                    host_E,
                    num_nodes,
                    scratch,
                    covers,
                    False,
                )
        accepted += 1
        due = accepted % REFRESH == 0
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
    """Book (sign 1) or undo (sign -1) that v takes u's slot on rank r, and u takes v's on rank s unless it is replaced."""
    on_EN[u, i] -= sign
    on_EN[v, i] += sign
    holds_GE[r, u] -= sign
    holds_GE[r, v] += sign
    if not replace:
        on_EN[u, j] += sign
        on_EN[v, j] -= sign
        holds_GE[s, u] += sign
        holds_GE[s, v] -= sign
