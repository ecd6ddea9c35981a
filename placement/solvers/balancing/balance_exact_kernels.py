"""Branch and bound over copies and packing at once, for the lowest peak of load / speed.

Expert by expert, the heaviest first: how many copies it gets, then the ranks that hold them. What is left to place
weighs the same whatever the copies of the experts to come, so the room below the best peak bounds it.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

from placement.support.inner_kernel import inner_kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Row = npt.NDArray[np.int32]


class Tree(NamedTuple):
    """State of the search; ranks G, experts E by falling load.

    weight_EC  int64 [E, C], of one copy if the expert has 1, 2, ... C
    cap_G      the highest load of each rank that is below the best peak
    load_G, held_G, held_GS  what is placed
    copies_E   how many each expert has that is placed
    chosen_EG  whether a rank holds the expert
    twin_EG    the last rank before this that was like it when the expert's turn came, or -1
    best_P     the best map
    """

    weight_EC: Ints
    speed_G: Floats
    cap_G: Ints
    load_G: Ints
    held_G: Ints
    held_GS: Row
    copies_E: Ints
    chosen_EG: npt.NDArray[np.bool_]
    twin_EG: Ints
    best_P: Row


@nb.njit(cache=True, nogil=True)
def search(weight_EC: Ints, speed_G: Floats, slots: int, start_P: Row, slack: float, nodes: int) -> tuple[Row, int]:
    """(best map, nodes left; below 0: they did not suffice for the proof). A gain below a relative `slack` is none."""
    num_ranks, num_experts = len(speed_G), len(weight_EC)
    tree = Tree(
        weight_EC,
        speed_G,
        np.zeros(num_ranks, dtype=np.int64),
        np.zeros(num_ranks, dtype=np.int64),
        np.zeros(num_ranks, dtype=np.int64),
        np.zeros((num_ranks, slots), dtype=np.int32),
        np.zeros(num_experts, dtype=np.int64),
        np.zeros((num_experts, num_ranks), dtype=np.bool_),
        np.full((num_experts, num_ranks), -1, dtype=np.int64),
        start_P.copy(),
    )
    copies_E = np.bincount(start_P, minlength=num_experts)
    load_G = np.zeros(num_ranks, dtype=np.int64)
    for p in range(len(start_P)):
        load_G[p // slots] += weight_EC[start_P[p], copies_E[start_P[p]] - 1]
    _lower_caps(tree, load_G, slack)
    # no recursion: numba cannot load a recursive function from its cache
    high_E, begin_E = np.zeros(num_experts, dtype=np.int64), np.zeros(num_experts, dtype=np.int64)
    rank_P = np.zeros(num_ranks * slots, dtype=np.int64)
    e, placed, first = -1, 0, -1
    while nodes >= 0:
        nodes -= 1
        if e < 0 or (first >= 0 and placed == begin_E[e] + tree.copies_E[e]):  # all copies of e are placed
            if e == num_experts - 1:
                tree.best_P[:] = tree.held_GS.ravel()
                _lower_caps(tree, tree.load_G, slack)
                first = -1
                continue
            e += 1
            low, high_E[e] = _copies(tree, e)
            tree.copies_E[e], begin_E[e], first = low - 1, placed, -1
        if first < 0:  # take back the last copy, or try another number of copies
            if placed > begin_E[e]:
                placed -= 1
                g = rank_P[placed]
                tree.chosen_EG[e, g] = False
                tree.held_G[g] -= 1
                tree.load_G[g] -= weight_EC[e, tree.copies_E[e] - 1]
                first = g + 1
            elif tree.copies_E[e] < high_E[e]:
                tree.copies_E[e] += 1
                first = 0
            elif e == 0:
                break
            else:
                e -= 1
                continue
        g = _next_rank(tree, e, first, tree.copies_E[e] - (placed - begin_E[e]))
        if g < 0:
            first = -1
            continue
        tree.held_GS[g, tree.held_G[g]] = e
        tree.chosen_EG[e, g] = True
        tree.held_G[g] += 1
        tree.load_G[g] += weight_EC[e, tree.copies_E[e] - 1]
        rank_P[placed] = g
        placed += 1
        first = g + 1
    return tree.best_P, nodes


@inner_kernel
def _lower_caps(tree: Tree, load_G: Ints, slack: float) -> None:
    peak = (load_G / tree.speed_G).max()
    for g in range(len(load_G)):
        tree.cap_G[g] = np.int64(np.ceil(peak * tree.speed_G[g] * (1 - slack))) - 1


@inner_kernel
def _next_rank(tree: Tree, e: int, first: int, missing: int) -> int:
    """The first rank from `first` on that may take one of the `missing` copies of expert e, or -1."""
    num_ranks, slots = tree.held_GS.shape
    weight = tree.weight_EC[e, tree.copies_E[e] - 1]
    for g in range(first, num_ranks - missing + 1):
        twin = tree.twin_EG[e, g]
        if tree.held_G[g] == slots or (twin >= 0 and not tree.chosen_EG[e, twin]):
            continue
        if tree.load_G[g] + weight <= tree.cap_G[g]:
            return g
    return -1


@nb.njit(cache=True, nogil=True)
def _copies(tree: Tree, e: int) -> tuple[int, int]:
    """Fewest and most copies of expert e, whose turn it is; fewest > most if no map below the caps is left."""
    num_ranks, slots = tree.held_GS.shape
    after, free = len(tree.weight_EC) - e - 1, num_ranks * slots - tree.held_G.sum()
    most = min(tree.weight_EC.shape[1], free - after)
    low, high = max(1, free - after * tree.weight_EC.shape[1]), most
    if e and tree.weight_EC[e, 0] == tree.weight_EC[e - 1, 0]:
        high = min(high, tree.copies_E[e - 1])  # they are exchangeable
    widest = 0
    for g in range(num_ranks):
        tree.twin_EG[e, g] = -1
        if tree.held_G[g] < slots:
            widest = max(widest, tree.cap_G[g] - tree.load_G[g])
        for other in range(g - 1, -1, -1):
            if (
                tree.load_G[other] == tree.load_G[g]
                and tree.held_G[other] == tree.held_G[g]
                and tree.speed_G[other] == tree.speed_G[g]
            ):
                tree.twin_EG[e, g] = other
                break
    while low <= high and tree.weight_EC[e, low - 1] > widest:
        low += 1
    # no copy to come is heavier than the heaviest that fits
    heaviest, weight = 0, 0
    for i in range(e, len(tree.weight_EC)):
        weight += tree.weight_EC[i, 0]
        c = 0
        while c < most and tree.weight_EC[i, c] > widest:
            c += 1
        if c == most:
            return 1, 0
        heaviest = max(heaviest, tree.weight_EC[i, c])
    room = 0
    for g in range(num_ranks):
        lacks, least = slots - tree.held_G[g], 0
        for i in range(lacks):  # the lightest copies that can be, of different experts
            if i > after:
                return 1, 0
            least += tree.weight_EC[len(tree.weight_EC) - 1 - i, most - 1]
        if tree.load_G[g] + least > tree.cap_G[g]:
            return 1, 0
        room += min(tree.cap_G[g] - tree.load_G[g], lacks * heaviest)
    # rounded weights may fall short of the load by half a unit a copy
    if weight > room + num_ranks * slots:
        return 1, 0
    return low, high
