"""How often the others of an expert's sets are in which state, kept up to date as experts change nodes (numba).

A move's change of sends and the shares of load after the move are dot products of these histograms with the tables of
`node_families`. All of them are whole numbers, so their sums do not depend on the order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.cost.covers import popcount
from placement.solvers.annealing.anneal_common import ONE, ZERO, Bytes, Floats, Incidence, Ints, Masks, members
from placement.solvers.annealing.node_families import Families
from placement.support.kernel import inlined_kernel, inner_kernel


class FamilyBooks(NamedTuple):
    """What is known of the sets while experts change nodes.

    host_E    uint64 [E], the nodes of each expert
    rest_UK   uint8 [U, K], the state of the others of a set, for each member
    hist_EY   int32 [E, Y], tokens of an expert's sets by block of their home and state of the others
    weight_E  int64 [E], tokens of an expert's sets
    prefix_K  int64 [K + 1], room for the families of a set's first members
    """

    host_E: Masks
    rest_UK: Bytes
    hist_EY: npt.NDArray[np.int32]
    weight_E: Ints
    prefix_K: Ints


def no_books(num_experts: int, inc: Incidence, tables: Families) -> FamilyBooks:
    """No set is booked yet."""
    num_sets, top_k = inc.sets_UK.shape
    return FamilyBooks(
        host_E=np.zeros(num_experts, dtype=np.uint64),
        rest_UK=np.zeros((num_sets, top_k), dtype=np.uint8),
        hist_EY=np.zeros((num_experts, tables.after_MY.shape[1]), dtype=np.int32),
        weight_E=np.zeros(num_experts, dtype=np.int64),
        prefix_K=np.zeros(top_k + 1, dtype=np.int64),
    )


@inlined_kernel
def _block(t: int, inc: Incidence, tables: Families) -> int:
    """The first column of the block of set t's home."""
    return (np.int64(inc.home_U[t]) + 1) * tables.width  # type: ignore[return-value]


@inner_kernel
def book_set(t: int, inc: Incidence, tables: Families, books: FamilyBooks) -> int:
    """Book set t, which is in no histogram yet; returns count * N * sends."""
    block, count = _block(t, inc, tables), np.int32(inc.count_U[t])
    for k in range(members(t, inc)):
        e = inc.sets_UK[t, k]
        books.rest_UK[t, k] = 0
        books.hist_EY[e, block] += count
        books.weight_E[e] += count
    word = update_states(t, inc, tables, books)
    return int(inc.count_U[t] * tables.sends_BZ[np.int64(inc.home_U[t]) + 1, tables.state_W[word]])


@inner_kernel
def update_states(t: int, inc: Incidence, tables: Families, books: FamilyBooks) -> int:
    """Bring the states of the others of set t up to date with the hosts; returns the family of the whole set."""
    host_E, rest_UK, hist_EY, _, prefix_K = books
    block, count, size = _block(t, inc, tables), np.int32(inc.count_U[t]), members(t, inc)
    # the family of the members before each, from the left
    prefix_K[0] = tables.everyone
    for k in range(size):
        prefix_K[k + 1] = prefix_K[k] & tables.word_M[host_E[inc.sets_UK[t, k]]]
    # the family of the members after each, from the right
    after = np.int64(tables.everyone)
    for k in range(size - 1, -1, -1):
        e = inc.sets_UK[t, k]
        z = tables.state_W[prefix_K[k] & after]
        if z != rest_UK[t, k]:
            hist_EY[e, block + rest_UK[t, k]] -= count
            hist_EY[e, block + z] += count
            rest_UK[t, k] = z
        after &= tables.word_M[host_E[e]]
    return int(prefix_K[size])


@inner_kernel
def change_of_sends(e: int, host: np.uint64, tables: Families, books: FamilyBooks) -> int:
    """Change of N * sends over all sets if expert e alone moved to the nodes `host`."""
    hist_EY, before = books.hist_EY, books.host_E[e]
    total = np.int32(0)  # 32 bits: twice the lanes; N * sends of 2^24 tokens fit
    for y in range(hist_EY.shape[1]):
        more = np.int32(tables.after_MY[host, y] - tables.after_MY[before, y])
        total = np.int32(total + np.int32(hist_EY[e, y] * more))
    return int(total)


@inner_kernel
def shares_of_load(e: int, host: np.uint64, tables: Families, books: FamilyBooks, share_N: Floats) -> None:
    """The share of e's load that each node serves if e is on the nodes `host`, exact under `min-nodes`."""
    hist_EY, weight, width = books.hist_EY, books.weight_E[e], popcount(host)
    for n in range(share_N.shape[0]):
        share_N[n] = 0.0
        if host >> np.uint64(n) & ONE == ZERO:
            continue
        if width == 1 or weight == 0:
            share_N[n] = 1.0 / width
            continue
        total = np.int32(0)
        for y in range(hist_EY.shape[1]):
            total = np.int32(total + np.int32(hist_EY[e, y] * tables.share_MNY[host, n, y]))
        share_N[n] = total / (weight * share_N.shape[0] * tables.unit)


@inner_kernel
def change_of_both(
    u: int, host_u: np.uint64, v: int, host_v: np.uint64, inc: Incidence, tables: Families, books: FamilyBooks
) -> int:
    """What the sets that hold both u and v add to the changes of u alone and of v alone."""
    host_E = books.host_E
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
