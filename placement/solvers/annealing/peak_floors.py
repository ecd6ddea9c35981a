"""What a move can save of the cost of imbalance at most, kept up to date with the loads (numba)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from placement.solvers.annealing.anneal_common import CAP_PRICE, ONE, ZERO, Costs, Floats, Ints, balance_cost
from placement.solvers.annealing.single_peaks import measure_relief, three_highest
from placement.support.kernel import inner_kernel


class Floors(NamedTuple):
    """Bounds on what a move saves.

    high_3B, rank_3B  the three highest loads under each bootstrap, and their ranks
    swap_G            saved at most by a swap of this rank and another
    touch_G           saved at most by a move that changes the load of this rank, of any number
    least_M           cost of the loads on the nodes outside of the mask M: no move within M ends below; empty beyond
                      FEW_NODES, where there are too many masks
    """

    high_3B: Floats
    rank_3B: Ints
    swap_G: Floats
    touch_G: Floats
    least_M: Floats


def no_floors(num_nodes: int, num_ranks: int, num_boots: int) -> Floors:
    """Room for the bounds."""
    masks = 1 << num_nodes if num_nodes <= FEW_NODES else 0
    high_3B, rank_3B = np.empty((3, num_boots)), np.empty((3, num_boots), dtype=np.int64)
    return Floors(high_3B, rank_3B, np.empty(num_ranks), np.empty(num_ranks), np.empty(masks))


@inner_search_kernel
def measure_floors(load_GB: Floats, peak_NB: Floats, costs: Costs, floors: Floors, peak_B: Floats) -> None:
    """Measure the bounds anew; `peak_B` is room."""
    high_3B, rank_3B, swap_G, touch_G, least_M = floors
    num_ranks, num_boots = load_GB.shape
    for b in range(num_boots):
        three_highest(load_GB, b, high_3B, rank_3B)
    measure_relief(high_3B, rank_3B, costs, swap_G)
    # no peak falls below the load of perfect balance
    speed = 0.0
    for g in range(num_ranks):
        touch_G[g] = 0.0
        speed += 1.0 / costs.slowness_G[g]
    for b in range(num_boots):
        touch_G[rank_3B[0, b]] += costs.price / num_boots * (high_3B[0, b] - num_ranks / speed)
    touch_G[rank_3B[0, 0]] += CAP_PRICE * max(0.0, high_3B[0, 0] - costs.cap)
    for m in range(least_M.shape[0]):
        peak_B[:] = 0.0
        for n in range(peak_NB.shape[0]):
            if m >> n & 1 == 0:
                for b in range(num_boots):
                    x = peak_NB[n, b]
                    peak_B[b] = x if x > peak_B[b] else peak_B[b]
        least_M[m] = balance_cost(peak_B, costs.price, costs.cap)


@inner_search_kernel
def most_saved(
    u: int, v: int, r: int, s: int, nodes: np.uint64, uneven: float, holds_EG: Ints, costs: Costs, floors: Floors
) -> float:
    """What a move of u and v, which changes loads on `nodes` alone, saves of the cost `uneven` at most."""
    saved = 0.0
    for n in range(costs.num_nodes):
        if nodes >> np.uint64(n) & ONE != ZERO:
            for g in range(n * costs.gpus_per_node, (n + 1) * costs.gpus_per_node):
                if holds_EG[u, g] or holds_EG[v, g] or g in (r, s):
                    saved += floors.touch_G[g]
    if floors.least_M.shape[0] > 0:
        saved = min(saved, uneven - floors.least_M[nodes])
    return float(saved)


@inner_search_kernel
def cost_of_swap(
    u: int, v: int, r: int, s: int, load_GB: Floats, costs: Costs, floors: Floors, peak_B: Floats
) -> float:
    """Cost of the loads if u on rank r and v on rank s, which have no other copies, swap."""
    slow_r, slow_s = costs.slowness_G[r], costs.slowness_G[s]
    high_3B, rank_3B = floors.high_3B, floors.rank_3B
    for b in range(peak_B.shape[0]):  # without branches, so that the loop is vectorised
        shift = costs.load_EB[v, b] - costs.load_EB[u, b]
        first_moves = (rank_3B[0, b] == r) | (rank_3B[0, b] == s)
        second_moves = (rank_3B[1, b] == r) | (rank_3B[1, b] == s)
        others = high_3B[1, b] if first_moves else high_3B[0, b]
        others = high_3B[2, b] if first_moves & second_moves else others
        peak_B[b] = max(max(load_GB[r, b] + shift * slow_r, load_GB[s, b] - shift * slow_s), others)
    return balance_cost(peak_B, costs.price, costs.cap)
