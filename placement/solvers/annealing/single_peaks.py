"""The most loaded ranks where every expert has one copy, and what a swap makes of them (numba): see `anneal_single`.

high_3B, rank_3B  the three highest loads under each bootstrap, and their ranks: a swap changes two, so the highest of
                  the others is known
relief_G          what a swap of this rank and another saves at most
"""

from __future__ import annotations

from placement.solvers.annealing.anneal_common import CAP_PRICE, Costs, Floats, Ints
from placement.support.kernel import inner_kernel

FEW_BOOTS = 16  # bootstraps that most swaps are refused by


@inner_kernel
def three_highest(load_GB: Floats, b: int, high_3B: Floats, rank_3B: Ints) -> None:
    """The three most loaded ranks of bootstrap b."""
    a0, a1, a2 = -1.0, -1.0, -1.0
    r0, r1, r2 = -1, -1, -1
    for g in range(load_GB.shape[0]):
        x = load_GB[g, b]
        if x > a2:
            if x > a1:
                a2, r2 = a1, r1
                if x > a0:
                    a1, r1 = a0, r0
                    a0, r0 = x, g
                else:
                    a1, r1 = x, g
            else:
                a2, r2 = x, g
    high_3B[0, b], high_3B[1, b], high_3B[2, b] = a0, a1, a2
    rank_3B[0, b], rank_3B[1, b], rank_3B[2, b] = r0, r1, r2


@inner_kernel
def measure_relief(high_3B: Floats, rank_3B: Ints, costs: Costs, relief_G: Floats) -> None:
    """What a swap of this rank and another can save at most: no peak falls below the third highest load."""
    relief_G[:] = 0.0
    add_relief(high_3B, rank_3B, 0, high_3B.shape[1], costs, relief_G)
    relief_G[rank_3B[0, 0]] += CAP_PRICE * max(0.0, high_3B[0, 0] - costs.cap)


@inner_kernel
def measure_reliefs(high_3B: Floats, rank_3B: Ints, costs: Costs, relief_G: Floats, rest_G: Floats) -> None:
    """The same, and the part of the bootstraps beyond the first FEW_BOOTS."""
    num_boots = high_3B.shape[1]
    few = min(FEW_BOOTS, num_boots)
    rest_G[:] = 0.0
    add_relief(high_3B, rank_3B, few, num_boots, costs, rest_G)
    for g in range(rest_G.shape[0]):
        relief_G[g] = rest_G[g]
    add_relief(high_3B, rank_3B, 0, few, costs, relief_G)
    relief_G[rank_3B[0, 0]] += CAP_PRICE * max(0.0, high_3B[0, 0] - costs.cap)


@inner_kernel
def add_relief(high_3B: Floats, rank_3B: Ints, first: int, end: int, costs: Costs, relief_G: Floats) -> None:
    """Add the same under bootstraps `first` to `end`, without the cap."""
    num_boots = high_3B.shape[1]
    for b in range(first, end):
        relief_G[rank_3B[0, b]] += costs.price / num_boots * (high_3B[0, b] - max(high_3B[2, b], 0.0))


@inner_kernel
def peaks_after(
    u: int,
    v: int,
    r: int,
    s: int,
    first: int,
    end: int,
    load_GB: Floats,
    high_3B: Floats,
    rank_3B: Ints,
    costs: Costs,
    peak_B: Floats,
) -> None:
    """The highest load under each bootstrap from `first` to `end` if u on rank r and v on rank s swap.

    This is the higher of both ranks, or the highest of the others.
    """
    slow_r, slow_s = costs.slowness_G[r], costs.slowness_G[s]
    for b in range(first, end):  # without branches, so that the loop is vectorised
        shift = costs.load_EB[v, b] - costs.load_EB[u, b]
        first_moves = (rank_3B[0, b] == r) | (rank_3B[0, b] == s)
        second_moves = (rank_3B[1, b] == r) | (rank_3B[1, b] == s)
        others = high_3B[1, b] if first_moves else high_3B[0, b]
        others = high_3B[2, b] if first_moves & second_moves else others
        peak = max(load_GB[r, b] + shift * slow_r, load_GB[s, b] - shift * slow_s)
        peak_B[b] = max(peak, others)


@inner_kernel
def rise_of_few(peak_B: Floats, high_3B: Floats) -> float:
    """By how much the peaks under the first FEW_BOOTS bootstraps rise, together; four sums side by side."""
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for b in range(0, FEW_BOOTS, 4):
        s0 += peak_B[b] - high_3B[0, b]
        s1 += peak_B[b + 1] - high_3B[0, b + 1]
        s2 += peak_B[b + 2] - high_3B[0, b + 2]
        s3 += peak_B[b + 3] - high_3B[0, b + 3]
    return (s0 + s1) + (s2 + s3)


@inner_kernel
def node_penalty(load_N: Floats, costs: Costs) -> float:
    """What the most loaded node costs beyond the cap on nodes."""
    peak = 0.0
    for n in range(load_N.shape[0]):
        peak = max(peak, load_N[n] * costs.slowness_N[n])
    return CAP_PRICE * max(0.0, peak - costs.node_cap)
