"""The most loaded ranks, and what a swap of experts with one copy makes of them (numba).

A swap changes the loads of two ranks, so the highest of the others is among the three highest of all.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from placement.solvers.annealing.anneal_common import CAP_PRICE, Costs, Floats, Ints
from placement.support.kernel import inner_search_kernel


class Highest(NamedTuple):
    """The three highest loads under each bootstrap, and the rank that has the highest."""

    first_B: Floats
    second_B: Floats
    third_B: Floats
    rank_B: Ints


FEW_BOOTS = 16  # bootstraps that most swaps are refused by


def no_highest(num_boots: int) -> Highest:
    """Room for the highest loads."""
    return Highest(np.empty(num_boots), np.empty(num_boots), np.empty(num_boots), np.empty(num_boots, dtype=np.int64))


@inner_search_kernel
def measure_highest(load_GB: Floats, highest: Highest) -> None:
    """The three highest loads of all bootstraps side by side: no branches, which would be hard to predict."""
    first_B, second_B, third_B, rank_B = highest
    num_ranks, num_boots = load_GB.shape
    for b in range(num_boots):
        first_B[b], second_B[b], third_B[b], rank_B[b] = -1.0, -1.0, -1.0, 0
    for g in range(num_ranks):
        for b in range(num_boots):
            x, first, second, third = load_GB[g, b], first_B[b], second_B[b], third_B[b]
            first_B[b] = x if x > first else first
            x = first if x > first else x
            second_B[b] = x if x > second else second
            x = second if x > second else x
            third_B[b] = x if x > third else third
    for g in range(num_ranks):
        for b in range(num_boots):
            rank = rank_B[b]
            rank_B[b] = g if load_GB[g, b] == first_B[b] else rank


@inner_search_kernel
def measure_reliefs(highest: Highest, costs: Costs, relief_G: Floats, rest_G: Floats) -> None:
    """What a swap of this rank and another can save at most: no peak falls below the third highest load.

    relief_G: under all bootstraps; rest_G: under those beyond the first FEW_BOOTS.
    """
    first_B, _, third_B, rank_B = highest
    num_boots = first_B.shape[0]
    each = costs.price / num_boots
    for g in range(relief_G.shape[0]):
        relief_G[g] = rest_G[g] = 0.0
    for b in range(num_boots):
        third = third_B[b]
        saved = each * (first_B[b] - (third if third > 0.0 else 0.0))
        relief_G[rank_B[b]] += saved
        if b >= FEW_BOOTS:
            rest_G[rank_B[b]] += saved
    relief_G[rank_B[0]] += CAP_PRICE * max(0.0, first_B[0] - costs.cap)


@inner_search_kernel
def peaks_after(
    u: int,
    v: int,
    r: int,
    s: int,
    begin: int,
    end: int,
    load_GB: Floats,
    highest: Highest,
    costs: Costs,
    peak_B: Floats,
) -> None:
    """The highest load under each bootstrap from `begin` to `end` if u on rank r and v on rank s swap.

    This is the higher of both ranks, or the highest of the others.
    """
    first_B, second_B, third_B, _ = highest
    slow_r, slow_s = costs.slowness_G[r], costs.slowness_G[s]
    for b in range(begin, end):  # without branches, so that the loop is vectorised
        first, second, third = first_B[b], second_B[b], third_B[b]
        load_r, load_s = load_GB[r, b], load_GB[s, b]
        higher = load_r if load_r > load_s else load_s
        lower = load_s if load_r > load_s else load_r
        others = third if lower == second else second
        others = others if higher == first else first
        shift = costs.load_EB[v, b] - costs.load_EB[u, b]
        load_r, load_s = load_r + shift * slow_r, load_s - shift * slow_s
        peak = load_r if load_r > load_s else load_s
        peak_B[b] = peak if peak > others else others


@inner_search_kernel
def rise_of_few(peak_B: Floats, first_B: Floats) -> float:
    """By how much the peaks under the first FEW_BOOTS bootstraps rise, together; four sums side by side."""
    s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
    for b in range(0, FEW_BOOTS, 4):
        s0 += peak_B[b] - first_B[b]
        s1 += peak_B[b + 1] - first_B[b + 1]
        s2 += peak_B[b + 2] - first_B[b + 2]
        s3 += peak_B[b + 3] - first_B[b + 3]
    return (s0 + s1) + (s2 + s3)


@inner_search_kernel
def node_penalty(load_N: Floats, costs: Costs) -> float:
    """What the most loaded node costs beyond the cap on nodes."""
    peak = 0.0
    for n in range(load_N.shape[0]):
        peak = max(peak, load_N[n] * costs.slowness_N[n])
    return CAP_PRICE * max(0.0, peak - costs.node_cap)
