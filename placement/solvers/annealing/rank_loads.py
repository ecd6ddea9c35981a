"""Rank loads where experts may have several copies, and what they cost (numba)."""

from __future__ import annotations

import numpy as np

from placement.solvers.annealing.anneal_common import (
    CAP_PRICE,
    ONE,
    ZERO,
    Costs,
    Floats,
    Ints,
    balance_cost,
    lowest_node,
)
from placement.support.kernel import inner_search_kernel

NOBODY: int = np.int64(-1)  # type: ignore[assignment]  # no expert; typed, as `COUNT_0`


@inner_search_kernel
def spread(share_N: Floats, on_N: Ints, holds_G: Ints, nodes: np.uint64, costs: Costs, part_G: Floats) -> None:
    """What an expert adds to each rank of `nodes` per unit of its load: a node's share evenly over its copies there."""
    while nodes != ZERO:
        n = lowest_node(nodes)
        nodes &= nodes - ONE
        for g in range(n * costs.gpus_per_node, (n + 1) * costs.gpus_per_node):
            part_G[g] = share_N[n] / on_N[n] * costs.slowness_G[g] if holds_G[g] else 0.0


@inner_search_kernel
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


@inner_search_kernel
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


@inner_search_kernel
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


@inner_search_kernel
def add_load(load_GB: Floats, e: int, more_G: Floats, nodes: np.uint64, costs: Costs) -> None:
    while nodes != ZERO:
        n = lowest_node(nodes)
        nodes &= nodes - ONE
        for g in range(n * costs.gpus_per_node, (n + 1) * costs.gpus_per_node):
            if more_G[g] != 0.0:
                for b in range(load_GB.shape[1]):
                    load_GB[g, b] += more_G[g] * costs.load_EB[e, b]
