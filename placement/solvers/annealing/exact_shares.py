"""What all sets send and where experts with several copies are served, exactly as `min-nodes` is evaluated (numba)."""

from __future__ import annotations

import numpy as np

from placement.cost.covers import COUNT_0, EXACT_NODES, pivot_of, popcount, smallest_covers
from placement.cost.kernel_min_nodes import visited_nodes
from placement.solvers.annealing.anneal_common import (
    ONE,
    ZERO,
    Floats,
    Incidence,
    Masks,
    lowest_node,
    members,
    total_of,
)
from placement.support.kernel import inner_search_kernel


def home_shares(num_experts: int, num_nodes: int, inc: Incidence) -> Floats:
    """Which share of each expert's tokens has which home, float64 [E, N]."""
    key_UK = inc.sets_UK.astype(np.int64) * (num_nodes + 1) + inc.home_U[:, None] + 1
    weights = np.repeat(inc.count_U, inc.sets_UK.shape[1])
    tokens_EH = np.bincount(key_UK.ravel(), weights, num_experts * (num_nodes + 1)).reshape(num_experts, -1)
    tokens_EN = tokens_EH[:, 1:] + tokens_EH[:, :1] / num_nodes
    total_E1 = tokens_EN.sum(axis=1, keepdims=True)
    share_EN = np.full(tokens_EN.shape, 1 / num_nodes)
    np.divide(tokens_EN, total_E1, out=share_EN, where=total_E1 > 0)
    return share_EN


@inner_search_kernel
def home_part(e: int, host: np.uint64, home_EN: Floats, share_N: Floats) -> float:
    """Write what nodes of `host` serve of e as home of its tokens to `share_N`; returns the share of other homes."""
    left = 1.0
    for n in range(share_N.shape[0]):
        share_N[n] = 0.0
        if host >> np.uint64(n) & ONE:
            share_N[n] = home_EN[e, n]
            left -= home_EN[e, n]
    return left


@inner_search_kernel
def measure_sets(
    inc: Incidence, host_E: Masks, share_EN: Floats, several_K: Masks, open_K: Masks, covers: Masks
) -> float:
    """Write the share of each expert's assignments that each of its nodes serves; returns N * sends of all sets."""
    sets, num_nodes = inc.sets_UK, share_EN.shape[1]
    share_EN[:] = 0.0
    sends, all_nodes = 0.0, ~ZERO >> np.uint64(64 - num_nodes)
    for t in range(sets.shape[0]):
        forced, hosts, num_several = ZERO, ZERO, 0
        size, known = members(t, inc), inc.home_U[t]
        for k in range(size):
            host = host_E[sets[t, k]]
            if host & (host - ONE) == ZERO:
                forced |= host
            else:
                hosts |= host
                several_K[num_several] = host
                num_several += 1
        pivot = pivot_of(sets[t, :size], num_nodes)
        # begin with the homes that host none of several copies: all choose alike
        bit, times, cell = ZERO, num_nodes - popcount(hosts), all_nodes & ~hosts
        at_home = popcount(forced & ~hosts)
        if known >= 0:
            home = ONE << np.uint64(known)
            bit, times, cell, hosts = hosts & home, num_nodes, home, ZERO
            at_home = 0 if forced & home == ZERO else num_nodes
        while True:
            if times == 0:
                if hosts == ZERO:
                    break
                bit, times = hosts & (~hosts + ONE), 1
                cell = bit
                hosts ^= bit
            num_open = COUNT_0
            for i in range(num_several):
                if several_K[i] & (forced | bit) == ZERO:
                    open_K[num_open] = several_K[i]
                    num_open += 1
            found = smallest_covers(open_K, num_open, pivot, num_nodes, covers)
            # sends: the nodes, less the home where it is one
            sent = float(times * popcount(forced | bit) - (times if bit != ZERO else at_home))
            if num_nodes <= EXACT_NODES:
                sent += times * popcount(covers[0])
            else:  # a token may choose none of the copies on a node of a greedy cover
                sent += visited_nodes(several_K[:num_several], forced, covers[0], cell) * times / popcount(cell)
            sends += inc.count_U[t] * sent
            # shares: the home serves what it hosts; else all covers do alike, each by all nodes that host the expert
            home_node, part = popcount(bit - ONE), inc.count_U[t] * times / num_nodes
            times = 0
            for k in range(size):
                e = sets[t, k]
                host = host_E[e]
                if host & (host - ONE) == ZERO:
                    continue
                if host & bit != ZERO:
                    share_EN[e, home_node] += part
                    continue
                for c in range(found):
                    usable = host & (forced | covers[c])
                    one = part / (found * popcount(usable))
                    while usable != ZERO:
                        share_EN[e, lowest_node(usable)] += one
                        usable &= usable - ONE
    for e in range(host_E.shape[0]):
        total, width = total_of(share_EN[e]), popcount(host_E[e])
        for n in range(num_nodes):
            if host_E[e] >> np.uint64(n) & ONE:
                share_EN[e, n] = share_EN[e, n] / total if total > 0 and width > 1 else 1.0 / width
            else:
                share_EN[e, n] = 0.0
    return sends
