"""How even the best split of load over copies makes each step (numba): a bound for all that picks copies at run time.

The split is found expert by expert: each fills its ranks up to one level, given what the others left there, until
little changes. That is coordinate descent on the sum of squares, whose only optimum has the least busiest rank.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.cost.sets import set_size
from placement.support.kernel import inner_kernel, kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
SETTLED, MOST_ROUNDS = 1e-4, 1000  # of the mean rank's load: a round that moves less is the last


@kernel
def split_steps(
    ids_TK: npt.NDArray[np.int32],
    rank_ptr_E: Ints,
    rank_C: Ints,
    speed_G: Floats,
    step_tokens_B: Ints,
    first_B: Ints,
    busiest_S: Floats,
) -> None:
    """Write the load over speed of the busiest rank over the mean rank, in all full steps of several sizes.

    rank_ptr_E, rank_C  expert e has copies on the distinct ranks rank_C[rank_ptr_E[e] : rank_ptr_E[e + 1]]
    step_tokens_B, first_B  as of `cost_steps`
    """
    num_experts, sizes = len(rank_ptr_E) - 1, len(step_tokens_B)
    load_E, load_BE = np.zeros(num_experts, dtype=np.int64), np.zeros((sizes, num_experts), dtype=np.int64)
    row_B, end_B = first_B.copy(), step_tokens_B.copy()
    for t in range(ids_TK.shape[0]):
        for k in range(set_size(ids_TK[t])):
            load_E[ids_TK[t, k]] += 1
        for b in range(sizes):
            if t + 1 == end_B[b]:
                busiest_S[row_B[b]] = best_busiest(load_E - load_BE[b], rank_ptr_E, rank_C, speed_G)
                load_BE[b] = load_E
                row_B[b] += 1
                end_B[b] += step_tokens_B[b]


@inner_kernel
def best_busiest(load_E: Ints, rank_ptr_E: Ints, rank_C: Ints, speed_G: Floats) -> float:
    """Of one step; 1 where nothing is served."""
    num_ranks = len(speed_G)
    load_G, share_C = np.zeros(num_ranks), np.zeros(len(rank_C))
    total = 0.0
    for e in range(len(load_E)):
        copies = rank_ptr_E[e + 1] - rank_ptr_E[e]
        total += load_E[e]
        for c in range(rank_ptr_E[e], rank_ptr_E[e + 1]):
            share_C[c] = load_E[e] / copies
            load_G[rank_C[c]] += share_C[c]
    if total == 0.0:
        return 1.0
    several_E = np.flatnonzero((rank_ptr_E[1:] - rank_ptr_E[:-1] > 1) & (load_E > 0))
    for _ in range(MOST_ROUNDS):
        moved = 0.0
        for i in range(len(several_E)):
            e = several_E[i]
            first, last = rank_ptr_E[e], rank_ptr_E[e + 1]
            if last - first == 2:
                moved += _fill_two(float(load_E[e]), first, rank_C, share_C, load_G, speed_G)
            else:
                moved += _fill(float(load_E[e]), rank_C[first:last], share_C[first:last], load_G, speed_G)
        if moved <= SETTLED * total / num_ranks:
            break
    return float((load_G / speed_G).max()) * num_ranks / total


@inner_kernel
def _fill_two(load: float, c: int, rank_C: Ints, share_C: Floats, load_G: Floats, speed_G: Floats) -> float:
    """`_fill` for an expert whose copies are c and c + 1."""
    one, two = rank_C[c], rank_C[c + 1]
    before = share_C[c]
    rest_1, rest_2 = load_G[one] - before, load_G[two] - share_C[c + 1]
    level = (load + rest_1 + rest_2) / (speed_G[one] + speed_G[two])
    share = min(max(level * speed_G[one] - rest_1, 0.0), load)
    share_C[c], share_C[c + 1] = share, load - share
    load_G[one], load_G[two] = rest_1 + share, rest_2 + load - share
    return 2.0 * float(abs(share - before))


@inner_kernel
def _fill(load: float, rank_c: Ints, share_c: Floats, load_G: Floats, speed_G: Floats) -> float:
    """Share the load of an expert anew over its ranks, up to one level; returns what moved."""
    copies = len(rank_c)
    level_c = np.empty(copies)
    for c in range(copies):
        load_G[rank_c[c]] -= share_c[c]
        level_c[c] = load_G[rank_c[c]] / speed_G[rank_c[c]]
    order_c = np.argsort(level_c)
    filled, speed, level = load, 0.0, 0.0
    for place in range(copies):
        c = order_c[place]
        if place > 0 and level <= level_c[c]:
            break
        filled += load_G[rank_c[c]]
        speed += speed_G[rank_c[c]]
        level = filled / speed
    moved = 0.0
    for c in range(copies):
        share = max(level * speed_G[rank_c[c]] - load_G[rank_c[c]], 0.0)
        moved += abs(share - share_c[c])
        share_c[c] = share
        load_G[rank_c[c]] += share
    return moved
