"""Branch and bound over copies and packing at once, for the lowest peak of load / speed.

Expert by expert, the heaviest first: how many copies it gets, then the ranks that hold them. What is left to place
weighs the same whatever the copies of the experts to come, so the room below the best peak bounds it.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

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
    left       one number: nodes that may still be opened
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
    left: Ints


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
        np.array([nodes]),
    )
    copies_E = np.bincount(start_P, minlength=num_experts)
    load_G = np.zeros(num_ranks, dtype=np.int64)
    for p in range(len(start_P)):
        load_G[p // slots] += weight_EC[start_P[p], copies_E[start_P[p]] - 1]
    _lower_caps(tree, load_G, slack)
    _descend(tree, -1, 0, 0, 0, slack)
    return tree.best_P, tree.left[0]


@nb.njit(cache=True, nogil=True)
def _lower_caps(tree: Tree, load_G: Ints, slack: float) -> None:
    peak = (load_G / tree.speed_G).max()
    for g in range(len(load_G)):
        tree.cap_G[g] = np.int64(np.ceil(peak * tree.speed_G[g] * (1 - slack))) - 1


@nb.njit(cache=True, nogil=True)
def _descend(tree: Tree, e: int, copies: int, missing: int, first: int, slack: float) -> None:
    """Place the `missing` ones of an expert's `copies` on ranks from `first` on, then all experts after it."""
    tree.left[0] -= 1
    if tree.left[0] < 0:
        return
    num_ranks, slots = tree.held_GS.shape
    if missing == 0:
        e += 1
        if e == len(tree.weight_EC):
            tree.best_P[:] = tree.held_GS.ravel()
            _lower_caps(tree, tree.load_G, slack)
            return
        low, high = _copies(tree, e)
        for more in range(low, high + 1):
            _descend(tree, e, more, more, 0, slack)
        return
    weight = tree.weight_EC[e, copies - 1]
    for g in range(first, num_ranks - missing + 1):
        twin = tree.twin_EG[e, g]
        if tree.held_G[g] == slots or (twin >= 0 and not tree.chosen_EG[e, twin]):
            continue
        if tree.load_G[g] + weight > tree.cap_G[g]:
            continue
        tree.held_GS[g, tree.held_G[g]] = e
        tree.held_G[g] += 1
        tree.load_G[g] += weight
        tree.chosen_EG[e, g] = True
        tree.copies_E[e] = copies
        _descend(tree, e, copies, missing - 1, g + 1, slack)
        tree.chosen_EG[e, g] = False
        tree.load_G[g] -= weight
        tree.held_G[g] -= 1


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
