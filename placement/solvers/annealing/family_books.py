"""How often the others of an expert's sets are in which state, kept up to date as experts change nodes (numba).

A move's change of sends and the shares of load after the move are dot products of these histograms with the tables of
`node_families`. All of them are whole numbers, so their sums do not depend on the order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.cost.covers import COUNT_0, popcount
from placement.cost.node_families import Families, families_of, visits_of
from placement.solvers.annealing.anneal_common import ONE, ZERO, Bytes, Floats, Ids, Incidence, Ints, Masks, members
from placement.solvers.annealing.set_histogram import Histogram
from placement.support.kernel import inner_search_kernel

REFRESH = 32  # changes of an expert's nodes between refreshes


class FamilyBooks(NamedTuple):
    """What is known of the sets while experts change nodes.

    inc, tables
    host_E    uint64 [E], the nodes of each expert
    rest_UK   uint8 [U, K], the state of the others of a set, for each member
    asked     tokens of an expert's sets by block of their home and state of the others, [E, Y]
    weight_E  int64 [E], tokens of an expert's sets
    prefix_K  int64 [K + 1], room for the families of a set's first members
    share_MNY, unit  of the tables: each proposal asks them
    every_U   int32 [U], the numbers of all sets
    visit_YN  float64 [Y, N], N * what goes into each node of a token in a state; count_Y: room for tokens by state
    into_MNY  int32 [2^N, N, Y], the same of the others of a set and one more expert on the nodes M, `into_unit` times
    into_N    float64 [N], N * what goes into each node of all sets, by the last `measure`
    refresh   changes of an expert's nodes between refreshes; quick: refreshes are, so each seeming best map has one
    """

    inc: Incidence
    tables: Families
    host_E: Masks
    rest_UK: Bytes
    asked: Histogram
    prefix_K: Ints
    weight_E: Ints
    share_MNY: npt.NDArray[np.int32]
    unit: int
    every_U: Ids
    visit_YN: Floats
    count_Y: Ints
    into_MNY: npt.NDArray[np.int32]
    into_unit: int
    into_N: Floats
    refresh: int
    quick: bool


def no_books(num_experts: int, num_nodes: int, inc: Incidence) -> FamilyBooks:
    """No set is booked yet."""
    tables = families_of(num_nodes, random_homes=bool((inc.home_U < 0).all()))
    visit_YN, into_MNY, into_unit = visits_of(num_nodes)
    blocks = tables.after_MY.shape[1]
    num_sets, top_k = inc.sets_UK.shape
    return FamilyBooks(
        inc=inc,
        tables=tables,
        host_E=np.zeros(num_experts, dtype=np.uint64),
        rest_UK=np.zeros((num_sets, top_k), dtype=np.uint8),
        asked=Histogram(
            hist_EZ=np.zeros((num_experts, tables.after_MY.shape[1]), dtype=np.int32), after_MZ=tables.after_MY
        ),
        weight_E=np.zeros(num_experts, dtype=np.int64),
        prefix_K=np.zeros(top_k + 1, dtype=np.int64),
        share_MNY=tables.share_MNY,
        unit=tables.unit,
        every_U=np.arange(len(inc.sets_UK), dtype=np.int32),
        visit_YN=visit_YN[:blocks],
        count_Y=np.zeros(blocks, dtype=np.int64),
        into_MNY=np.ascontiguousarray(into_MNY[:, :, :blocks]),
        into_unit=into_unit,
        into_N=np.zeros(num_nodes),
        refresh=REFRESH,
        quick=True,
    )


@inner_search_kernel
def book_sets(books: FamilyBooks) -> None:
    """Book all sets."""
    inc, tables, hist_EY, weight_E = books.inc, books.tables, books.asked.hist_EZ, books.weight_E
    for t in range(inc.sets_UK.shape[0]):
        block, count = (np.int64(inc.home_U[t]) + 1) * tables.width, np.int32(inc.count_U[t])
        for k in range(inc.sets_UK.shape[1]):
            hist_EY[inc.sets_UK[t, k], block] += count
            weight_E[inc.sets_UK[t, k]] += count
    _update_sets(books.every_U, COUNT_0, books.every_U.shape[0], books)


@inner_search_kernel
def update_expert(e: int, books: FamilyBooks) -> None:
    """Bring the sets of an expert, which changed nodes, up to date."""
    _update_sets(books.inc.expert_sets, books.inc.expert_ptr[e], books.inc.expert_ptr[e + 1], books)


@inner_search_kernel
def _update_sets(set_X: Ids, start: int, stop: int, books: FamilyBooks) -> None:
    inc, tables, host_E, rest_UK, asked, prefix_K = books[:6]
    hist_EY = asked.hist_EZ
    sets_UK, count_U, home_U = inc[:3]
    word_M, state_W = tables.word_M, tables.state_W
    prefix_K[0] = tables.everyone
    top_k = sets_UK.shape[1]
    for x in range(start, stop):
        t = int(np.int64(set_X[x]))
        block, count = (np.int64(home_U[t]) + 1) * tables.width, np.int32(count_U[t])
        # the family of the members before each, from the left
        for k in range(top_k):
            prefix_K[k + 1] = prefix_K[k] & word_M[host_E[sets_UK[t, k]]]
        # the family of the members after each, from the right
        after = np.int64(tables.everyone)
        for k in range(top_k - 1, -1, -1):
            e = sets_UK[t, k]
            z = state_W[prefix_K[k] & after]
            if z != rest_UK[t, k]:
                hist_EY[e, block + rest_UK[t, k]] -= count
                hist_EY[e, block + z] += count
                rest_UK[t, k] = z
            after &= word_M[host_E[e]]


@inner_search_kernel
def shares_of_load(e: int, host: np.uint64, share_N: Floats, books: FamilyBooks) -> None:
    """The share of e's load that each node serves if e is on the nodes `host`, exact under `min-nodes`."""
    hist_EY, share_MNY, weight, width = books.asked.hist_EZ, books.share_MNY, books.weight_E[e], popcount(host)
    for n in range(share_N.shape[0]):
        share_N[n] = 0.0
        if host >> np.uint64(n) & ONE == ZERO:
            continue
        if width == 1 or weight == 0:
            share_N[n] = 1.0 / width
            continue
        total = np.int32(0)
        for y in range(hist_EY.shape[1]):
            total = np.int32(total + np.int32(hist_EY[e, y] * share_MNY[host, n, y]))
        share_N[n] = total / (weight * share_N.shape[0] * books.unit)


@inner_search_kernel
def change_of_both(u: int, host_u: np.uint64, v: int, host_v: np.uint64, books: FamilyBooks) -> int:
    """What the sets that hold both u and v add to the changes of u alone and of v alone."""
    inc, tables, host_E = books.inc, books.tables, books.host_E
    row = min(u, v) * host_E.shape[0] + max(u, v)
    word_M, state_W, sends_BZ = tables.word_M, tables.state_W, tables.sends_BZ
    old_u, old_v, new_u, new_v = word_M[host_E[u]], word_M[host_E[v]], word_M[host_u], word_M[host_v]
    total = 0
    for x in range(inc.pair_ptr[row], inc.pair_ptr[row + 1]):
        t = inc.pair_sets[x]
        rest = np.int64(tables.everyone)
        for k in range(members(t, inc)):
            e = inc.sets_UK[t, k]
            if e not in (u, v):
                rest &= word_M[host_E[e]]
        b = np.int64(inc.home_U[t]) + 1
        both = sends_BZ[b, state_W[rest & new_u & new_v]] + sends_BZ[b, state_W[rest & old_u & old_v]]
        one = sends_BZ[b, state_W[rest & new_u & old_v]] + sends_BZ[b, state_W[rest & old_u & new_v]]
        total += inc.count_U[t] * (both - one)
    return int(total)


@inner_search_kernel
def measure(share_EN: Floats, books: FamilyBooks) -> float:
    """N * sends of all sets, and the shares of load that nodes serve, both exact."""
    inc, tables, host_E = books.inc, books.tables, books.host_E
    for e in range(host_E.shape[0]):
        shares_of_load(e, host_E[e], share_EN[e], books)
    count_Y, into_N = books.count_Y, books.into_N
    total = 0
    count_Y[:] = 0
    for t in range(inc.sets_UK.shape[0]):
        word = np.int64(tables.everyone)
        for k in range(members(t, inc)):
            word &= tables.word_M[host_E[inc.sets_UK[t, k]]]
        b, z = np.int64(inc.home_U[t]) + 1, tables.state_W[word]
        total += inc.count_U[t] * tables.sends_BZ[b, z]
        count_Y[b * tables.width + z] += inc.count_U[t]
    for n in range(into_N.shape[0]):
        into_N[n] = 0.0
        for y in range(count_Y.shape[0]):
            into_N[n] += count_Y[y] * books.visit_YN[y, n]
    return float(total)


@inner_search_kernel
def add_into(e: int, host: np.uint64, more_N: Floats, books: FamilyBooks) -> None:
    """Add to `more_N` by how much more goes into each node, N times, if expert e alone moved to the nodes `host`."""
    hist_EY, into_MNY, before = books.asked.hist_EZ, books.into_MNY, books.host_E[e]
    for n in range(more_N.shape[0]):
        total = np.int32(0)
        for y in range(hist_EY.shape[1]):
            more = np.int32(into_MNY[host, n, y] - into_MNY[before, n, y])
            total = np.int32(total + np.int32(hist_EY[e, y] * more))
        more_N[n] += total / books.into_unit
