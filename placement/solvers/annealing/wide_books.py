"""Where the others of an expert's sets send, entry by entry, kept up to date as experts change nodes (beyond 8 nodes).

The reach of a set (`reaches`) is taken to be the same from every home that hosts no copy, with the home: few of many
nodes host one. So a move's change of sends is an estimate, as the shares of load are; refreshes measure both exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from placement.cost.covers import COUNT_0, MAX_COVERS, popcount
from placement.solvers.annealing.anneal_common import ONE, ZERO, Floats, Ids, Incidence, Ints, Masks
from placement.solvers.annealing.exact_shares import home_part, home_shares, measure_sets
from placement.solvers.annealing.reaches import hosts_of_set, hosts_without, open_masks
from placement.support.kernel import inner_search_kernel

MEASURED = 192  # pairs of a set and a node for each accepted move between refreshes


class Entries(NamedTuple):
    """What a set costs each member: entry X is a set and a member, in the order of experts.

    rest_X    uint64 [X], the reach of the others of the set; of a set with a home, the home too
    known_X   int64 [X], N * tokens of sets with a home; random_X int64 [X], tokens of the other sets
    expert_ptr  int64 [E + 1], the entries of each expert
    """

    rest_X: Masks
    known_X: Ints
    random_X: Ints
    expert_ptr: Ints
    num_nodes: int


class WideBooks(NamedTuple):
    """What is known of the sets while experts change nodes.

    inc, asked
    host_E    uint64 [E], the nodes of each expert
    home_EN   float64 [E, N], share of an expert's tokens by home
    several_K, open_K, covers  room for masks
    every_U   int32 [U], the numbers of all sets
    refresh   accepted moves between refreshes, which are not quick
    """

    inc: Incidence
    host_E: Masks
    asked: Entries
    several_K: Masks
    open_K: Masks
    home_EN: Floats
    covers: Masks
    every_U: Ids
    into_N: Floats
    refresh: int
    quick: bool


def no_books(num_experts: int, num_nodes: int, inc: Incidence) -> WideBooks:
    """No set is booked yet."""
    num_sets, top_k = inc.sets_UK.shape
    home_X, count_X = inc.home_U[inc.expert_sets], inc.count_U[inc.expert_sets]
    return WideBooks(
        inc=inc,
        host_E=np.zeros(num_experts, dtype=np.uint64),
        asked=Entries(
            rest_X=np.zeros(len(inc.expert_sets), dtype=np.uint64),
            known_X=np.where(home_X >= 0, count_X * num_nodes, 0),
            random_X=np.where(home_X < 0, count_X, 0),
            expert_ptr=inc.expert_ptr,
            num_nodes=num_nodes,
        ),
        home_EN=home_shares(num_experts, num_nodes, inc),
        several_K=np.zeros(top_k, dtype=np.uint64),
        open_K=np.zeros(top_k, dtype=np.uint64),
        covers=np.empty(MAX_COVERS, dtype=np.uint64),
        every_U=np.arange(len(inc.sets_UK), dtype=np.int32),
        into_N=np.zeros(num_nodes),
        refresh=max(64, num_sets * num_nodes // MEASURED),
        quick=False,
    )


@inner_search_kernel
def book_sets(books: WideBooks) -> None:
    """Book all sets."""
    _update_sets(books.every_U, COUNT_0, books.every_U.shape[0], books)


@inner_search_kernel
def update_expert(e: int, books: WideBooks) -> None:
    """Bring the sets of an expert, which changed nodes, up to date."""
    _update_sets(books.inc.expert_sets, books.inc.expert_ptr[e], books.inc.expert_ptr[e + 1], books)


@inner_search_kernel
def _update_sets(set_X: Ids, start: int, stop: int, books: WideBooks) -> None:
    inc, host_E, asked, several_K, open_K = books[:5]
    rest_X = asked.rest_X
    sets_UK, home_U, entry_UK = inc.sets_UK, inc.home_U, inc.entry_UK
    for x in range(start, stop):
        t = int(np.int64(set_X[x]))
        home = ZERO if home_U[t] < 0 else ONE << np.uint64(home_U[t])
        once, twice, num_several = hosts_of_set(t, sets_UK, host_E, several_K)
        several = 0
        for k in range(sets_UK.shape[1]):
            # the reach of the others of member e
            e = sets_UK[t, k]
            forced, skip = once, -1
            if host_E[e] & (host_E[e] - ONE) == ZERO:
                forced = twice | (once & ~host_E[e])
            else:
                skip = several
                several += 1
            forced |= home
            num_open = open_masks(forced, skip, num_several, several_K, open_K)
            rest_X[entry_UK[t, k]] = forced | _covered(open_K, num_open)


@inner_search_kernel
def _covered(open_K: Masks, num_open: int) -> np.uint64:
    """The nodes of the smallest covers of open masks: exact for up to two masks, and where one node meets all."""
    shared, union = ~ZERO, ZERO
    for i in range(num_open):
        shared &= open_K[i]
        union |= open_K[i]
    return union if shared == ZERO else shared & union


@inner_search_kernel
def change_of_sends(e: int, before: np.uint64, host: np.uint64, asked: Entries) -> int:
    """Change of N * sends over all sets if expert e alone moved from the nodes `before` to the nodes `host`."""
    rest_X, known_X, random_X, expert_ptr, num_nodes = asked
    away_after, away_before = num_nodes - popcount(host), num_nodes - popcount(before)
    total = 0
    for x in range(expert_ptr[e], expert_ptr[e + 1]):
        after_here = known_X[x] + random_X[x] * away_after
        before_here = known_X[x] + random_X[x] * away_before
        total += after_here * np.int64(rest_X[x] & host == ZERO) - before_here * np.int64(rest_X[x] & before == ZERO)
    return int(total)


@inner_search_kernel
def shares_of_load(e: int, host: np.uint64, share_N: Floats, books: WideBooks) -> None:
    """The share of e's load that each node serves if e is on the nodes `host`: exact at its homes, else estimated."""
    left, width = home_part(e, host, books.home_EN, share_N), popcount(host)
    rest_X, known_X, random_X, expert_ptr, num_nodes = books.asked
    start, stop = expert_ptr[e], expert_ptr[e + 1]
    total = 0.0
    for x in range(start, stop):
        total += known_X[x] + num_nodes * random_X[x]
    if width == 1 or total == 0.0:
        for n in range(share_N.shape[0]):
            share_N[n] = 1.0 / width if host >> np.uint64(n) & ONE else 0.0
        return
    for x in range(start, stop):
        usable = host & rest_X[x]
        usable = host if usable == ZERO else usable
        tokens = known_X[x] + num_nodes * random_X[x]
        part = left * tokens / (total * popcount(usable))
        for n in range(share_N.shape[0]):
            if usable >> np.uint64(n) & ONE:
                share_N[n] += part


@inner_search_kernel
def change_of_both(u: int, host_u: np.uint64, v: int, host_v: np.uint64, books: WideBooks) -> int:
    """What the sets that hold both u and v add to the changes of u alone and of v alone."""
    inc, host_E, asked, several_K, open_K = books[:5]
    sets_UK, (rest_X, known_X, random_X) = inc.sets_UK, asked[:3]
    old_v, row, num_nodes = host_E[v], min(u, v) * host_E.shape[0] + max(u, v), books.home_EN.shape[1]
    width_new, width_old = num_nodes - popcount(host_v), num_nodes - popcount(old_v)
    total = 0
    for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
        t = int(np.int64(inc.pair_sets[x]))
        k = 0
        while sets_UK[t, k] != v:
            k += 1
        y = inc.entry_UK[t, k]
        forced, num_several = hosts_without(t, v, u, host_u, sets_UK, host_E, several_K)
        forced |= ZERO if inc.home_U[t] < 0 else ONE << np.uint64(inc.home_U[t])
        num_open = open_masks(forced, -1, num_several, several_K, open_K)
        before, after = rest_X[y], forced | _covered(open_K, num_open)
        sends_new = known_X[y] + random_X[y] * width_new
        sends_old = known_X[y] + random_X[y] * width_old
        total += sends_new * ((after & host_v == ZERO) - np.int64(before & host_v == ZERO))
        total -= sends_old * ((after & old_v == ZERO) - np.int64(before & old_v == ZERO))
    return int(total)


@inner_search_kernel
def measure(share_EN: Floats, books: WideBooks) -> float:
    """N * sends of all sets, and the shares of load that nodes serve, both exact."""
    return float(measure_sets(books.inc, books.host_E, share_EN, books.several_K, books.open_K, books.covers))


@inner_search_kernel
def add_into(e: int, host: np.uint64, more_N: Floats, books: WideBooks) -> None:
    """What goes into which node is not known on so many nodes."""
