"""What a move can save of the cost of imbalance at most, kept up to date with the loads (numba)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from placement.cost.covers import COUNT_0
from placement.solvers.annealing.anneal_common import CAP_PRICE, ONE, ZERO, Costs, Floats, Ints, balance_cost
from placement.solvers.annealing.single_peaks import Highest, measure_highest, measure_reliefs, no_highest, peaks_after
from placement.support.kernel import inner_search_kernel

FEW_NODES = 4


class Floors(NamedTuple):
    """Bounds on what a move saves.

    highest  the highest loads under each bootstrap
    swap_G   saved at most by a swap of this rank and another
    touch_G  saved at most by a move that changes the load of this rank, of any number
    least_M  cost of the loads on the nodes outside of the mask M: no move within M ends below; empty beyond FEW_NODES,
             where there are too many masks
    rest_G   room
    """

    highest: Highest
    swap_G: Floats
    touch_G: Floats
    least_M: Floats
    rest_G: Floats


def no_floors(num_nodes: int, num_ranks: int, num_boots: int) -> Floors:
    """Room for the bounds."""
    masks = 1 << num_nodes if num_nodes <= FEW_NODES else 0
    return Floors(no_highest(num_boots), np.empty(num_ranks), np.empty(num_ranks), np.empty(masks), np.empty(num_ranks))


@inner_search_kernel
def measure_floors(load_GB: Floats, peak_NB: Floats, costs: Costs, floors: Floors, peak_B: Floats) -> None:
    """Measure the bounds anew; `peak_B` is room."""
    highest, swap_G, touch_G, least_M, rest_G = floors
    first_B, rank_B = highest.first_B, highest.rank_B
    num_ranks, num_boots = load_GB.shape
    measure_highest(load_GB, highest)
    measure_reliefs(highest, costs, swap_G, rest_G)
    # no peak falls below the load of perfect balance
    speed = 0.0
    for g in range(num_ranks):
        touch_G[g] = 0.0
        speed += 1.0 / costs.slowness_G[g]
    for b in range(num_boots):
        touch_G[rank_B[b]] += costs.price / num_boots * (first_B[b] - num_ranks / speed)
    touch_G[rank_B[0]] += CAP_PRICE * max(0.0, first_B[0] - costs.cap)
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
    peaks_after(u, v, r, s, COUNT_0, peak_B.shape[0], load_GB, floors.highest, costs, peak_B)
    return balance_cost(peak_B, costs.price, costs.cap)
