"""Smallest sets of nodes that cover a token's experts: what the replica choice `min-nodes` sends to.

Sets of nodes are 64-bit masks. Given the home node, experts that it hosts are served there; the others ("open") need
further nodes, as few as possible. Up to EXACT_NODES nodes all smallest covers are listed; beyond, the greedy cover is
taken (most open experts first; of equals the node next after the token's pivot, so that no node is favoured over all
tokens). What homes that host none of the experts send is therefore the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import types
from numba.extending import intrinsic

from placement.support.kernel import inner_kernel, kernel

EXACT_NODES = 8
MAX_COVERS = 256

# what callers count up from: passed on, a literal 0 has its callee compiled for it first, and then for any number
COUNT_0: int = np.int64(0)  # type: ignore[assignment]
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


def _popcount(_: Any, mask: types.Type) -> tuple[Any, Any]:
    """Set bits of a 64-bit word, for compiled code: one instruction, and little to compile."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.ctpop(args[0])

    return types.int64(types.uint64), codegen


popcount: Callable[[np.uint64], int] = intrinsic(_popcount)  # type: ignore[assignment]


@kernel
def smallest_covers(
    open_M: npt.NDArray[np.uint64], num_open: int, pivot: int, num_nodes: int, out: npt.NDArray[np.uint64]
) -> int:
    """Write all smallest node sets that meet each of the first `num_open` masks to `out`; returns how many."""
    if num_open == 0:
        out[0] = _ZERO
        return 1
    shared = open_M[0]
    union = open_M[0]
    for i in range(1, num_open):
        shared &= open_M[i]
        union |= open_M[i]
    found = 0
    if shared != _ZERO:
        while shared != _ZERO:
            bit = shared & (~shared + _ONE)
            out[found] = bit
            found += 1
            shared ^= bit
        return found
    if num_nodes > EXACT_NODES:
        out[0] = _greedy_cover(open_M, num_open, pivot, out)
        return 1
    for size in range(2, num_nodes + 1):
        # all subsets of `union`, in descending order of the masked counter
        subset = union
        while subset != _ZERO:
            if popcount(subset) == size:
                covers = True
                for i in range(num_open):
                    if open_M[i] & subset == _ZERO:
                        covers = False
                        break
                if covers:
                    out[found] = subset
                    found += 1
            subset = (subset - _ONE) & union
        if found > 0:
            return found
    return found


@inner_kernel
def pivot_of(ids_K: npt.NDArray[Any], num_nodes: int) -> int:
    """The node from which a token's ties are counted: the sum of its expert ids, modulo the nodes.

    0 up to `EXACT_NODES` nodes, where all covers are listed and there are no ties.
    """
    total = COUNT_0
    if num_nodes <= EXACT_NODES:
        return total
    for e in ids_K:
        total += int(e)
    return total % num_nodes


@inner_kernel
def _greedy_cover(
    open_M: npt.NDArray[np.uint64], num_open: int, pivot: int, level_M: npt.NDArray[np.uint64]
) -> np.uint64:
    """`level_M` is room for one word a mask: word j gets the nodes that more than j of the masks still open hold."""
    after_pivot = (~_ZERO << np.uint64(pivot)) << _ONE
    chosen = _ZERO
    while True:
        levels = 0
        for i in range(num_open):
            mask = open_M[i]
            if mask & chosen != _ZERO:
                continue
            for level in range(levels):
                again = level_M[level] & mask
                level_M[level] |= mask
                mask = again
            if mask != _ZERO:
                level_M[levels] = mask
                levels += 1
        if levels == 0:
            return chosen
        most = level_M[levels - 1]
        next_ones = most & after_pivot
        most = next_ones if next_ones != _ZERO else most
        chosen |= most & (~most + _ONE)
