"""Sends of top-k sets whose experts may have several copies, kept up to date as masks change (numba).

A set's sends are the mean over homes of the smallest number of further nodes that cover it. Experts on one node force
that node into the cover, as a home that is known does; experts on several are open unless a forced node hosts them.
For every (set, expert) the state of the other experts of the set is kept: what they send alone, their forced nodes and
open masks. The cost of a set under a new mask of one expert is then a closed form of a few instructions; sets with more
open masks, where the new one meets some of them, are covered by dynamic programming. Covers are the smallest for any
number of nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from placement.cost.covers import COUNT_0, popcount
from placement.solvers.annealing.anneal_common import ONE, ZERO, Incidence, Ints, Masks
from placement.support.kernel import inlined_kernel, inner_kernel, kernel

MANY = 3
MOST_OPEN = 5  # open masks of a set beyond these are left out of a search's estimate: their subsets are too many
NOBODY: int = np.int64(-1)  # type: ignore[assignment]  # no expert; typed, as `COUNT_0`


class Hosts(NamedTuple):
    """Which nodes host each expert, and room to compute covers in.

    host_E   uint64 [E], node masks
    scratch  uint64 [2, S], masks; cover_S int64 [S], sizes of covers: S is enough for the masks or subsets of a set
    """

    host_E: Masks
    num_nodes: int
    scratch: Masks
    cover_S: Ints


class Rest(NamedTuple):
    """For entry x = (set, expert) of the incidence: the other experts of the set.

    forced, open_1, open_2  node masks; num_open counts open masks, MANY means more than two
    union  the nodes of all open masks
    sends  N * sends of the others alone; -1: not computed yet
    """

    forced: Masks
    open_1: Masks
    open_2: Masks
    num_open: Ints
    union: Masks
    sends: Ints


def no_hosts(num_experts: int, num_nodes: int, top_k: int) -> Hosts:
    """No expert is hosted yet."""
    subsets = 1 << min(top_k, MOST_OPEN)
    scratch = np.zeros((2, max(subsets, top_k, 3)), dtype=np.uint64)
    return Hosts(np.zeros(num_experts, dtype=np.uint64), num_nodes, scratch, np.zeros(subsets, dtype=np.int64))


def no_rest(size: int) -> Rest:
    """Room for so many entries."""
    masks = (np.empty(size, dtype=np.uint64), np.empty(size, dtype=np.uint64), np.empty(size, dtype=np.uint64))
    numbers = np.empty(size, dtype=np.int64)
    return Rest(*masks, numbers, np.empty(size, dtype=np.uint64), np.empty(size, dtype=np.int64))


@inlined_kernel
def _home_bit(home: int) -> np.uint64:
    return ZERO if home < 0 else ONE << np.uint64(home)


@inlined_kernel
def _sends_of_forced(forced: np.uint64, home: int, num_nodes: int) -> int:
    """N * sends of nodes that are needed anyway; a home that is known is one of them."""
    return num_nodes * (popcount(forced) - 1) if home >= 0 else popcount(forced) * (num_nodes - 1)


@inlined_kernel
def _closed_form(forced: np.uint64, a: np.uint64, b: np.uint64, num_open: int, home: int, num_nodes: int) -> int:
    """N * sends, given forced nodes and up to two open masks."""
    sends = _sends_of_forced(forced, home, num_nodes)
    if home >= 0:
        return sends + num_nodes * (1 if num_open == 2 and a & b != ZERO else num_open)
    if num_open == 1:
        sends += num_nodes - popcount(a)
    elif num_open == 2:
        shared, union = popcount(a & b), popcount(a | b)
        sends += (union - shared) + (num_nodes - union) * (1 if shared > 0 else 2)
    return sends


@inlined_kernel
def _covers_of_three(a: np.uint64, b: np.uint64, c: np.uint64, home: int, num_nodes: int) -> int:
    """Sum over homes of the fewest nodes that meet those of three masks that the home does not."""
    ab, ac, bc = a & b, a & c, b & c
    union = a | b | c
    all_three = ab & c
    two_or_more = ab | ac | bc
    for_all = 1 if all_three != ZERO else (2 if two_or_more != ZERO else 3)
    if home >= 0:  # it is forced, so it meets none of them
        return num_nodes * for_all
    total = (num_nodes - popcount(union)) * for_all + popcount(two_or_more & ~all_three)
    total += popcount(a & ~two_or_more) * (1 if bc != ZERO else 2)
    total += popcount(b & ~two_or_more) * (1 if ac != ZERO else 2)
    total += popcount(c & ~two_or_more) * (1 if ab != ZERO else 2)
    return total


@inner_kernel
def _sends_of_many(
    forced: np.uint64, open_M: Masks, num_masks: int, home: int, num_nodes: int, shared_S: Masks, cover_S: Ints
) -> int:
    """N * sends of a set from its forced nodes and any number of open masks, which are reordered.

    The fewest nodes that meet every mask of a subset S, for all subsets: those that the node of S's lowest mask meets,
    and the fewest for the others. A home is left with the subset of masks that it does not meet itself.
    """
    once, twice, alone = ZERO, ZERO, 0
    for k in range(num_masks):
        twice |= once & open_M[k]
        once |= open_M[k]
    overlapping = 0
    for k in range(num_masks):
        if open_M[k] & twice == ZERO:  # it shares no node, so it needs one of its own, but for homes that host it
            alone += num_nodes if home >= 0 else num_nodes - popcount(open_M[k])
        else:
            open_M[overlapping] = open_M[k]
            overlapping += 1
    num_masks = min(overlapping, MOST_OPEN)
    full = (1 << num_masks) - 1
    shared_S[0] = ~ZERO
    cover_S[0] = 0
    union = ZERO
    for k in range(num_masks):
        union |= open_M[k]
    for subset in range(1, full + 1):
        lowest, k = subset & -subset, 0
        while lowest >> k != 1:
            k += 1
        shared_S[subset] = shared_S[subset ^ lowest] & open_M[k]
        others = subset ^ lowest
        fewest = num_masks
        met = others
        while True:
            if shared_S[met | lowest] != ZERO:
                fewest = min(fewest, 1 + cover_S[others ^ met])
            if met == 0:
                break
            met = (met - 1) & others
        cover_S[subset] = fewest
    total = _sends_of_forced(forced, home, num_nodes) + alone
    if home >= 0:
        return int(total + num_nodes * cover_S[full])
    total += (num_nodes - popcount(union)) * cover_S[full]
    while union != ZERO:
        bit = union & (~union + ONE)
        union ^= bit
        left = 0
        for k in range(num_masks):
            if open_M[k] & bit == ZERO:
                left |= 1 << k
        total += cover_S[left]
    return int(total)


@kernel
def sends_of_set(t: int, u: int, host_u: np.uint64, v: int, host_v: np.uint64, inc: Incidence, hosts: Hosts) -> int:
    """N * sends of set t if u and v had these masks (0: as if the expert were not in the set)."""
    host_E, num_nodes, scratch, cover_S = hosts
    sets, home = inc.sets_UK, inc.home_U[t]
    num_hosts = 0
    forced = _home_bit(home)
    for k in range(sets.shape[1]):
        e = sets[t, k]
        host = host_u if e == u else (host_v if e == v else host_E[e])
        if host & (host - ONE) == ZERO:
            forced |= host
        else:
            scratch[0, num_hosts] = host
            num_hosts += 1
    num_open = COUNT_0
    for k in range(num_hosts):
        if scratch[0, k] & forced == ZERO:
            scratch[0, num_open] = scratch[0, k]
            num_open += 1
    if num_open == 3:
        more = _covers_of_three(scratch[0, 0], scratch[0, 1], scratch[0, 2], home, num_nodes)
        return _sends_of_forced(forced, home, num_nodes) + more
    if num_open > 3:
        return _sends_of_many(forced, scratch[0], num_open, home, num_nodes, scratch[1], cover_S)
    return _closed_form(forced, scratch[0, 0], scratch[0, 1], num_open, home, num_nodes)


@inner_kernel
def change_of(u: int, host: np.uint64, inc: Incidence, rest: Rest, sends_U: Ints, hosts: Hosts) -> int:
    """Change of N * sends over all sets if only expert u got mask `host`."""
    num_nodes = hosts.num_nodes
    single = host & (host - ONE) == ZERO
    total = 0
    for x in range(inc.expert_ptr[u], inc.expert_ptr[u + 1]):
        t = int(np.int64(inc.expert_sets[x]))
        num_open, home = rest.num_open[x], inc.home_U[t]
        met = host & rest.forced[x] != ZERO
        if met or host & rest.union[x] == ZERO:  # what the others need, and one node at homes that do not host it
            if rest.sends[x] < 0:
                rest.sends[x] = sends_of_set(t, u, ZERO, NOBODY, ZERO, inc, hosts)
            after = rest.sends[x] + (0 if met else num_nodes if home >= 0 else num_nodes - popcount(host))
        elif num_open == MANY:
            after = sends_of_set(t, u, host, NOBODY, ZERO, inc, hosts)
        else:
            forced, a, b = rest.forced[x], rest.open_1[x], rest.open_2[x]
            if single:
                forced |= host
                if num_open == 2 and b & host != ZERO:
                    num_open = 1
                    if a & host != ZERO:
                        num_open = 0
                elif num_open > 0 and a & host != ZERO:
                    a = b
                    num_open -= 1
                after = _closed_form(forced, a, b, num_open, home, num_nodes)
            elif num_open == 1:
                after = _closed_form(forced, a, host, 2, home, num_nodes)
            else:
                after = sends_of_set(t, u, host, NOBODY, ZERO, inc, hosts)
        total += inc.count_U[t] * (after - sends_U[t])
    return total


@inner_kernel
def update_set(t: int, inc: Incidence, rest: Rest, sends_U: Ints, hosts: Hosts) -> None:
    """Bring set t's sends and its members' rests up to date with the hosts."""
    host_E, num_nodes, scratch, _ = hosts
    sets = inc.sets_UK
    sends_U[t] = sends_of_set(t, NOBODY, ZERO, NOBODY, ZERO, inc, hosts)
    home = inc.home_U[t]
    once, twice, num_several = _home_bit(home), ZERO, 0
    for k in range(sets.shape[1]):
        host = host_E[sets[t, k]]
        if host & (host - ONE) == ZERO:
            twice |= once & host
            once |= host
        else:
            scratch[0, num_several] = host
            num_several += 1
    several = 0
    for k in range(sets.shape[1]):
        host = host_E[sets[t, k]]
        forced, skip = once, -1
        if host & (host - ONE) == ZERO:
            forced = twice | (once & ~host)
        else:
            skip = several
            several += 1
        a, b, union, num_open = ZERO, ZERO, ZERO, 0
        for i in range(num_several):
            if i != skip and scratch[0, i] & forced == ZERO:
                if num_open == 0:
                    a = scratch[0, i]
                elif num_open == 1:
                    b = scratch[0, i]
                union |= scratch[0, i]
                num_open += 1
        x = inc.entry_UK[t, k]
        rest.forced[x], rest.open_1[x], rest.open_2[x], rest.num_open[x] = forced, a, b, min(num_open, MANY)
        rest.union[x] = union
        rest.sends[x] = -1 if num_open > 2 else _closed_form(forced, a, b, num_open, home, num_nodes)
