"""Proposals of the search with copies: experts that meet in sets, and those whose sends a move would lower (numba)."""

from __future__ import annotations

import numpy as np

from placement.cost.covers import popcount
from placement.solvers.annealing.anneal_common import (
    ONE,
    Ids,
    Incidence,
    Ints,
    Masks,
    lowest_node,
    members,
    random_below,
)
from placement.solvers.annealing.copy_books import Asked, change_of_sends
from placement.support.kernel import inlined_kernel, inner_search_kernel

TRIES = 4  # slots or experts that a guided proposal looks at
NEVER: int = np.int64(1 << 60)  # type: ignore[assignment]  # above any change of sends


@inlined_kernel
def hosts_after(host: np.uint64, on_N: Ints, i: int, j: int) -> np.uint64:
    """The nodes of an expert whose copies on nodes i and j may have changed."""
    for n in (i, j):
        bit = ONE << np.uint64(n)
        host = host | bit if on_N[n] > 0 else host & ~bit
    return host


@inner_search_kernel
def slot_of_fellow(p: int, phy2log_P: Ids, inc: Incidence, host_E: Masks, slots_per_node: int, state: Masks) -> int:
    """A slot of an expert that is in a set with one on the node of slot p, both drawn at random."""
    other = p - p % slots_per_node + random_below(state, slots_per_node)
    e = phy2log_P[other]
    start, stop = inc.expert_ptr[e], inc.expert_ptr[e + 1]
    if start == stop:
        return other
    t = inc.expert_sets[start + random_below(state, stop - start)]
    v = inc.sets_UK[t, random_below(state, members(t, inc))]
    hosts = host_E[v]
    for _ in range(random_below(state, popcount(hosts))):
        hosts &= hosts - ONE
    first = lowest_node(hosts) * slots_per_node
    for q in range(first, first + slots_per_node):
        if phy2log_P[q] == v:
            return q
    return other


@inner_search_kernel
def guided_swap(
    p: int, phy2log_P: Ids, slots_per_node: int, on_EN: Ints, host_E: Masks, state: Masks, asked: Asked
) -> int:
    """A slot on the node where the expert of slot p saves most sends; its own expert loses least on p's node."""
    u, i = int(np.int64(phy2log_P[p])), p // slots_per_node
    j, least = i, NEVER
    for n in range(on_EN.shape[1]):
        if n != i and on_EN[u, n] == 0:
            change = change_of_sends(u, host_E[u], _moved(u, i, n, on_EN, host_E), asked)
            if change < least:
                j, least = n, change
    best, least = p, NEVER
    for _ in range(TRIES):
        q = j * slots_per_node + random_below(state, slots_per_node)
        v = int(np.int64(phy2log_P[q]))
        change = change_of_sends(v, host_E[v], _moved(v, j, i, on_EN, host_E), asked)
        if change < least:
            best, least = q, change
    return best


@inner_search_kernel
def guided_copy(
    p: int,
    phy2log_P: Ids,
    slots_per_node: int,
    copies_E: Ints,
    on_EN: Ints,
    host_E: Masks,
    state: Masks,
    asked: Asked,
) -> tuple[int, int]:
    """A slot of an expert with several copies, and one of the expert that saves most sends there."""
    for _ in range(TRIES):
        if copies_E[phy2log_P[p]] > 1:
            break
        p = random_below(state, phy2log_P.shape[0])
    i = p // slots_per_node
    best, least = p, NEVER
    for _ in range(TRIES):
        q = random_below(state, phy2log_P.shape[0])
        v = int(np.int64(phy2log_P[q]))
        if on_EN[v, i] == 0:
            change = change_of_sends(v, host_E[v], host_E[v] | ONE << np.uint64(i), asked)
            if change < least:
                best, least = q, change
    return p, best


@inlined_kernel
def _moved(e: int, i: int, j: int, on_EN: Ints, host_E: Masks) -> np.uint64:
    """The nodes of e after a copy went from node i to node j."""
    host: np.uint64 = host_E[e] | ONE << np.uint64(j)
    return host & ~(ONE << np.uint64(i)) if on_EN[e, i] == 1 else host
