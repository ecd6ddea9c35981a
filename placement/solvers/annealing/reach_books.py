"""How often the others of an expert's sets have which reach, kept up to date as experts change nodes (5 to 8 nodes).

A move's change of sends is exact. The share of load that each node serves after the move is an estimate: the reach does
not say which of several smallest covers a node is in, nor which byte of a histogram was whose home.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.cost.covers import COUNT_0, MAX_COVERS, popcount
from placement.solvers.annealing.anneal_common import ONE, ZERO, Floats, Ids, Incidence, Masks
from placement.solvers.annealing.exact_shares import home_part, home_shares, measure_sets
from placement.solvers.annealing.reaches import (
    EACH_HOME,
    UNIT,
    Reaches,
    hosts_of_set,
    hosts_without,
    open_masks,
    reach_of,
    reaches_of,
)
from placement.solvers.annealing.set_histogram import Histogram, no_tokens
from placement.support.kernel import inner_search_kernel

BYTE = np.uint64(255)
MEASURED = 192  # pairs of a set and a node for each accepted move between refreshes


class ReachBooks(NamedTuple):
    """What is known of the sets while experts change nodes.

    inc, tables
    host_E    uint64 [E], the nodes of each expert
    rest_UK   uint64 [U, K], the reach of the others of a set, for each member: a byte a home
    asked     N * tokens of an expert's sets by reach of the others, [E, 2^N]: of random homes, a part for each
    home_EN   float64 [E, N], share of an expert's tokens by home
    several_K, open_K, covers  room for masks
    share_MNS  of the tables
    every_U   int32 [U], the numbers of all sets
    refresh   accepted moves between refreshes, which are not quick
    """

    inc: Incidence
    tables: Reaches
    host_E: Masks
    rest_UK: Masks
    asked: Histogram
    several_K: Masks
    open_K: Masks
    home_EN: Floats
    share_MNS: npt.NDArray[np.int32]
    covers: Masks
    every_U: Ids
    into_N: Floats
    refresh: int
    quick: bool


def no_books(num_experts: int, num_nodes: int, inc: Incidence) -> ReachBooks:
    """No set is booked yet."""
    (num_sets, top_k), tables = inc.sets_UK.shape, reaches_of(num_nodes)
    return ReachBooks(
        inc=inc,
        tables=tables,
        host_E=np.zeros(num_experts, dtype=np.uint64),
        rest_UK=np.full((num_sets, top_k), EACH_HOME, dtype=np.uint64),
        asked=no_tokens(num_experts, tables.away_MS),
        home_EN=home_shares(num_experts, num_nodes, inc),
        several_K=np.zeros(top_k, dtype=np.uint64),
        open_K=np.zeros(top_k, dtype=np.uint64),
        share_MNS=tables.share_MNS,
        covers=np.empty(MAX_COVERS, dtype=np.uint64),
        every_U=np.arange(len(inc.sets_UK), dtype=np.int32),
        into_N=np.zeros(num_nodes),
        refresh=max(64, num_sets * num_nodes // MEASURED),
        quick=False,
    )


@inner_search_kernel
def book_sets(books: ReachBooks) -> None:
    """Book all sets."""
    inc, hist_ES, num_nodes = books.inc, books.asked.hist_EZ, books.home_EN.shape[1]
    for t in range(inc.sets_UK.shape[0]):
        home, count = inc.home_U[t], np.int32(inc.count_U[t])
        for k in range(inc.sets_UK.shape[1]):
            for h in range(num_nodes):
                if home < 0:
                    hist_ES[inc.sets_UK[t, k], 1 << h] += count
                elif home == h:
                    hist_ES[inc.sets_UK[t, k], 1 << h] += count * np.int32(num_nodes)
    _update_sets(books.every_U, COUNT_0, books.every_U.shape[0], books)


@inner_search_kernel
def update_expert(e: int, books: ReachBooks) -> None:
    """Bring the sets of an expert, which changed nodes, up to date."""
    _update_sets(books.inc.expert_sets, books.inc.expert_ptr[e], books.inc.expert_ptr[e + 1], books)


@inner_search_kernel
def _update_sets(set_X: Ids, start: int, stop: int, books: ReachBooks) -> None:
    inc, tables, host_E, rest_UK, asked, several_K, open_K = books[:7]
    hist_ES = asked.hist_EZ
    sets_UK, count_U, home_U = inc[:3]
    homes_M, meets_MW, holds_NW, sized_CW = tables.homes_M, tables.meets_MW, tables.holds_NW, tables.sized_CW
    num_nodes = holds_NW.shape[0]
    for x in range(start, stop):
        t = int(np.int64(set_X[x]))
        home, count = home_U[t], np.int32(count_U[t])
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
            num_open = open_masks(forced, skip, num_several, several_K, open_K)
            after = reach_of(forced, open_K, num_open, homes_M, meets_MW, holds_NW, sized_CW)
            before = rest_UK[t, k]
            if before == after:
                continue
            # move its tokens in the histogram, those of each home
            rest_UK[t, k] = after
            if home >= 0:
                shift = np.uint64(8 * home)
                hist_ES[e, before >> shift & BYTE] -= count * np.int32(num_nodes)
                hist_ES[e, after >> shift & BYTE] += count * np.int32(num_nodes)
                continue
            for _ in range(num_nodes):
                if before & BYTE != after & BYTE:
                    hist_ES[e, before & BYTE] -= count
                    hist_ES[e, after & BYTE] += count
                before >>= np.uint64(8)
                after >>= np.uint64(8)


@inner_search_kernel
def shares_of_load(e: int, host: np.uint64, share_N: Floats, books: ReachBooks) -> None:
    """The share of e's load that each node serves if e is on the nodes `host`: exact at its homes, else estimated."""
    hist_ES, share_MNS = books.asked.hist_EZ, books.share_MNS
    left, width = home_part(e, host, books.home_EN, share_N), popcount(host)
    total = 0.0
    if width > 1:
        for s in range(hist_ES.shape[1]):
            total += hist_ES[e, s]
    for n in range(share_N.shape[0]):
        if host >> np.uint64(n) & ONE == ZERO:
            continue
        if total == 0.0:
            share_N[n] = 1.0 / width
            continue
        served = np.int64(0)
        for s in range(hist_ES.shape[1]):
            served += np.int64(hist_ES[e, s]) * np.int64(share_MNS[host, n, s])
        share_N[n] += left * served / (total * UNIT)


@inner_search_kernel
def change_of_both(u: int, host_u: np.uint64, v: int, host_v: np.uint64, books: ReachBooks) -> int:
    """What the sets that hold both u and v add to the changes of u alone and of v alone."""
    inc, tables, host_E, rest_UK, _, several_K, open_K = books[:7]
    sets_UK, away_MS = inc.sets_UK, tables.away_MS
    num_nodes = tables.holds_NW.shape[0]
    old_v, row = host_E[v], min(u, v) * host_E.shape[0] + max(u, v)
    total = 0
    for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
        t = int(np.int64(inc.pair_sets[x]))
        # the reach of all but v, as they are and with u on its new nodes
        k = 0
        while sets_UK[t, k] != v:
            k += 1
        forced, num_several = hosts_without(t, v, u, host_u, sets_UK, host_E, several_K)
        num_open = open_masks(forced, -1, num_several, several_K, open_K)
        after = reach_of(forced, open_K, num_open, tables.homes_M, tables.meets_MW, tables.holds_NW, tables.sized_CW)
        before, home, change = rest_UK[t, k], inc.home_U[t], 0
        for h in range(num_nodes):
            if home < 0 or home == h:
                old, new = before >> np.uint64(8 * h) & BYTE, after >> np.uint64(8 * h) & BYTE
                change += away_MS[host_v, new] - away_MS[old_v, new] - away_MS[host_v, old] + away_MS[old_v, old]
        total += inc.count_U[t] * change * (1 if home < 0 else num_nodes)
    return int(total)


@inner_search_kernel
def measure(share_EN: Floats, books: ReachBooks) -> float:
    """N * sends of all sets, and the shares of load that nodes serve, both exact."""
    return float(measure_sets(books.inc, books.host_E, share_EN, books.several_K, books.open_K, books.covers))


@inner_search_kernel
def add_into(e: int, host: np.uint64, more_N: Floats, books: ReachBooks) -> None:
    """What goes into which node is not known on so many nodes."""
