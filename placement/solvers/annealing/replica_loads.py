"""Rank loads where experts may have several copies (numba), under the replica choice `min-nodes`."""

from __future__ import annotations

import numpy as np

from placement.cost.covers import COUNT_0, pivot_of, popcount, smallest_covers
from placement.solvers.annealing.anneal_common import (
    CAP_PRICE,
    ONE,
    ZERO,
    Costs,
    Floats,
    Incidence,
    Ints,
    Masks,
    balance_cost,
    lowest_node,
    members,
    total_of,
)
from placement.solvers.annealing.replica_sends import Rest
from placement.support.kernel import inner_kernel, kernel


@inner_kernel
def measure_shares(
    inc: Incidence, host_E: Masks, num_nodes: int, share_EN: Floats, scratch: Masks, covers: Masks
) -> None:
    """The share of each expert's assignments that each of its nodes serves, exact under `min-nodes`."""
    sets = inc.sets_UK
    num_experts = host_E.shape[0]
    share_EN[:] = 0.0
    for t in range(sets.shape[0]):
        several = False
        forced = ZERO
        size = members(t, inc)
        for k in range(size):
            host = host_E[sets[t, k]]
            if host & (host - ONE) != ZERO:
                several = True
            else:
                forced |= host
        if not several:
            continue
        hosts = ZERO
        for k in range(size):
            host = host_E[sets[t, k]]
            if host & (host - ONE) != ZERO:
                hosts |= host
        pivot = pivot_of(sets[t, :size], num_nodes)
        known = inc.home_U[t]
        bit, times = ZERO, num_nodes - popcount(hosts)  # begin with the homes that host none of them: all choose alike
        if known >= 0:
            bit, times = hosts & (ONE << np.uint64(known)), num_nodes
            hosts = ZERO
        while True:
            if times == 0:
                if hosts == ZERO:
                    break
                bit, times = hosts & (~hosts + ONE), 1
                hosts ^= bit
            home = popcount(bit - ONE)
            w = inc.count_U[t] * times / num_nodes
            times = 0
            num_open = COUNT_0
            for k in range(size):
                host = host_E[sets[t, k]]
                if host & (forced | bit) == ZERO:
                    scratch[0, num_open] = host
                    num_open += 1
            found = smallest_covers(scratch[0], num_open, pivot, num_nodes, covers)
            for k in range(size):
                e = sets[t, k]
                host = host_E[e]
                if host & (host - ONE) == ZERO:
                    continue
                if host & bit != ZERO:
                    share_EN[e, home] += w
                    continue
                for c in range(found):
                    usable = host & (forced | covers[c])
                    part = w / (found * popcount(usable))
                    while usable != ZERO:
                        share_EN[e, lowest_node(usable)] += part
                        usable &= usable - ONE
    for e in range(num_experts):
        total = total_of(share_EN[e])
        width = popcount(host_E[e])
        for n in range(num_nodes):
            if host_E[e] >> np.uint64(n) & ONE:
                share_EN[e, n] = share_EN[e, n] / total if total > 0 and width > 1 else 1.0 / width
            else:
                share_EN[e, n] = 0.0


@inner_kernel
def estimate_shares(u: int, host: np.uint64, inc: Incidence, rest: Rest, num_nodes: int, share_N: Floats) -> None:
    """The shares of u's nodes if it had mask `host`, from its sets' forced nodes alone."""
    share_N[:] = 0.0
    width = popcount(host)
    if width > 1:
        home_part = 1.0 / num_nodes
        for x in range(inc.expert_ptr[u], inc.expert_ptr[u + 1]):
            w = inc.count_U[inc.expert_sets[x]]
            usable = host & rest.forced[x]
            if usable == ZERO:
                usable = host
            home = inc.home_U[inc.expert_sets[x]]
            if home >= 0:
                if host >> np.uint64(home) & ONE:
                    usable = ONE << np.uint64(home)
                for n in range(num_nodes):
                    if usable >> np.uint64(n) & ONE:
                        share_N[n] += w / popcount(usable)
                continue
            away = (num_nodes - width) * home_part / popcount(usable)
            left = host
            while left != ZERO:
                bit = left & (~left + ONE)
                left ^= bit
                share_N[popcount(bit - ONE)] += w * (home_part + (away if usable & bit != ZERO else 0.0))
    total = total_of(share_N)
    for n in range(num_nodes):
        if host >> np.uint64(n) & ONE:
            share_N[n] = share_N[n] / total if total > 0 else 1.0 / width


@kernel
def spread(share_N: Floats, on_N: Ints, holds_G: Ints, nodes: np.uint64, costs: Costs, part_G: Floats) -> None:
    """What an expert adds to each rank of `nodes` per unit of its load: a node's share evenly over its copies there."""
    while nodes != ZERO:
        n = lowest_node(nodes)
        nodes &= nodes - ONE
        for g in range(n * costs.gpus_per_node, (n + 1) * costs.gpus_per_node):
            part_G[g] = share_N[n] / on_N[n] * costs.slowness_G[g] if holds_G[g] else 0.0


@inner_kernel
def spread_more(
    share_N: Floats, on_N: Ints, holds_G: Ints, nodes: np.uint64, costs: Costs, part_G: Floats, more_G: Floats
) -> None:
    """`spread`, less what the expert adds now."""
    spread(share_N, on_N, holds_G, nodes, costs, more_G)
    while nodes != ZERO:
        n = lowest_node(nodes)
        nodes &= nodes - ONE
        for g in range(n * costs.gpus_per_node, (n + 1) * costs.gpus_per_node):
            more_G[g] -= part_G[g]


@inner_kernel
def measure_peaks(load_GB: Floats, nodes: np.uint64, costs: Costs, peak_NB: Floats) -> None:
    """The highest load on each of `nodes` under every bootstrap."""
    while nodes != ZERO:
        n = lowest_node(nodes)
        nodes &= nodes - ONE
        peak_NB[n] = 0.0
        for g in range(n * costs.gpus_per_node, (n + 1) * costs.gpus_per_node):
            for b in range(load_GB.shape[1]):
                x = load_GB[g, b]
                peak_NB[n, b] = x if x > peak_NB[n, b] else peak_NB[n, b]


@inner_kernel
def cost_after(
    load_GB: Floats,
    peak_NB: Floats,
    nodes: np.uint64,
    u: int,
    more_u_G: Floats,
    v: int,
    more_v_G: Floats,
    costs: Costs,
    peak_B: Floats,
) -> float:
    """Cost of the loads if u and v added this much more to the ranks of `nodes` than they do; other nodes stay."""
    load_u_B, load_v_B = costs.load_EB[u], costs.load_EB[v]
    peak_B[:] = 0.0
    capped, most = costs.node_cap < np.inf, 0.0
    for n in range(costs.num_nodes):
        changes = nodes >> np.uint64(n) & ONE != ZERO
        if not changes:
            for b in range(load_GB.shape[1]):
                x = peak_NB[n, b]
                peak_B[b] = x if x > peak_B[b] else peak_B[b]
            if not capped:
                continue
        load = 0.0
        for g in range(n * costs.gpus_per_node, (n + 1) * costs.gpus_per_node):
            x_u, x_v = (more_u_G[g], more_v_G[g]) if changes else (0.0, 0.0)
            if changes:
                for b in range(load_GB.shape[1]):
                    x = load_GB[g, b] + x_u * load_u_B[b] + x_v * load_v_B[b]
                    peak_B[b] = x if x > peak_B[b] else peak_B[b]
            if capped:
                load += (load_GB[g, 0] + x_u * load_u_B[0] + x_v * load_v_B[0]) / costs.slowness_G[g]
        most = max(most, load * costs.slowness_N[n])
    over = CAP_PRICE * max(0.0, most - costs.node_cap) if capped else 0.0
    return balance_cost(peak_B, costs.price, costs.cap) + over


@inner_kernel
def add_load(load_GB: Floats, e: int, more_G: Floats, nodes: np.uint64, costs: Costs) -> None:
    while nodes != ZERO:
        n = lowest_node(nodes)
        nodes &= nodes - ONE
        for g in range(n * costs.gpus_per_node, (n + 1) * costs.gpus_per_node):
            if more_G[g] != 0.0:
                for b in range(load_GB.shape[1]):
                    load_GB[g, b] += more_G[g] * costs.load_EB[e, b]
