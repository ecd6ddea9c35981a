"""One slot for every assignment: what a runtime does where the cost model takes the mean over all that may happen.

The rules are those of `placement.cost.kernel_replicas` and `placement.cost.kernel_balanced`. What they leave to chance
is drawn from a hash of the rank, the token's number and the expert, so the same tokens get the same slots again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.cost.covers import COUNT_0, pivot_of, popcount, smallest_covers
from placement.cost.kernel_balanced import RunningLoad, balanced_copies, balanced_scratch, count_token
from placement.cost.lookup_tables import LayerTables
from placement.support.hash64 import GOLDEN, mix_word
from placement.support.kernel import inlined_kernel, inner_kernel, kernel

_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@kernel
def draw_slots(
    rank: int,
    by_cover: bool,
    by_rank: bool,
    nodes_E: npt.NDArray[np.uint64],
    tables: LayerTables,
    ids_TK: npt.NDArray[Any],
    running: RunningLoad,
    slot_TK: npt.NDArray[np.int32],
) -> None:
    """Write the slot that serves each expert of tokens of `rank` to `slot_TK`; -1 for an id below 0.

    nodes_E  uint64 [E], allowed nodes of each expert for the rank's home; `by_cover` and `by_rank` as in `Allowed`
    running  goes on from call to call: it numbers the tokens
    """
    top_k = ids_TK.shape[1]
    home_bit = _ONE << np.uint64(rank // (tables.num_ranks // tables.num_nodes))
    scratch = balanced_scratch(top_k)
    place_M = np.empty(top_k, dtype=np.int64)
    ids_M = np.empty(top_k, dtype=np.int64)
    for t in range(ids_TK.shape[0]):
        size = routed(ids_TK[t], slot_TK[t], ids_M, place_M)
        word = mix_word(np.uint64(running.seen_1[0]) * GOLDEN + mix_word(np.uint64(rank)))
        visited = ~_ZERO
        if by_cover:
            visited = drawn_nodes(ids_M[:size], home_bit, word, tables, scratch.open_K, scratch.covers)
        for i in range(size):
            only = tables.slot_ptr_E[ids_M[i]]
            if tables.slot_ptr_E[ids_M[i] + 1] - only == 1:  # nothing is left to chance
                slot_TK[t, place_M[i]] = tables.slot_id[only]
                continue
            allowed = nodes_E[ids_M[i]]
            if allowed & home_bit == _ZERO:
                allowed &= visited
            draw = mix_word(word + np.uint64(ids_M[i] + 1) * GOLDEN)
            by_slot = not (by_cover or (by_rank and allowed & home_bit != _ZERO))
            copy = _drawn_copy(ids_M[i], allowed, by_cover, by_slot, draw, tables)
            slot_TK[t, place_M[i]] = tables.slot_id[copy]
        count_token(running)


@kernel
def draw_balanced(
    rank: int,
    tables: LayerTables,
    ids_TK: npt.NDArray[Any],
    running: RunningLoad,
    slot_TK: npt.NDArray[np.int32],
) -> None:
    """As `draw_slots`, by the load so far, which `running` holds."""
    top_k = ids_TK.shape[1]
    home = rank // (tables.num_ranks // tables.num_nodes)
    scratch = balanced_scratch(top_k)
    place_M = np.empty(top_k, dtype=np.int64)
    ids_M = np.empty(top_k, dtype=np.int64)
    for t in range(ids_TK.shape[0]):
        size = routed(ids_TK[t], slot_TK[t], ids_M, place_M)
        balanced_copies(ids_M[:size], home, tables, running.price_G, scratch)
        for i in range(size):
            copy = scratch.best_K[i]
            slot_TK[t, place_M[i]] = tables.slot_id[copy]
            running.window_G[tables.slot_rank[copy]] += running.slowness_G[tables.slot_rank[copy]]
        count_token(running)


@inlined_kernel
def routed(
    ids_K: npt.NDArray[Any],
    slot_K: npt.NDArray[np.int32],
    ids_M: npt.NDArray[np.int64],
    place_M: npt.NDArray[np.int64],
) -> int:
    """Write a token's ids that are none below 0, and where they stand; returns how many. Slots are -1 at first."""
    size = COUNT_0
    for k in range(len(ids_K)):
        slot_K[k] = -1
        if ids_K[k] >= 0:
            ids_M[size], place_M[size] = ids_K[k], k
            size += 1
    return size


@inner_kernel
def drawn_nodes(
    ids_M: npt.NDArray[np.int64],
    home_bit: np.uint64,
    word: np.uint64,
    tables: LayerTables,
    open_K: npt.NDArray[np.uint64],
    covers: npt.NDArray[np.uint64],
) -> np.uint64:
    """Nodes that experts with one slot force, and one of the smallest covers of those that are still open."""
    forced = _ZERO
    several = COUNT_0
    for e in ids_M:
        if tables.slot_ptr_E[e + 1] - tables.slot_ptr_E[e] == 1:
            forced |= tables.host_E[e]
        else:
            open_K[several] = tables.host_E[e]
            several += 1
    num_open = COUNT_0
    for i in range(several):
        if open_K[i] & (forced | home_bit) == _ZERO:
            open_K[num_open] = open_K[i]
            num_open += 1
    if num_open == 0:
        return forced
    found = smallest_covers(open_K, num_open, pivot_of(ids_M, tables.num_nodes), tables.num_nodes, covers)
    further: np.uint64 = covers[np.int64(word % np.uint64(found))]
    return forced | further


@inner_kernel
def _drawn_copy(
    e: int, allowed: np.uint64, node_first: bool, by_slot: bool, draw: np.uint64, tables: LayerTables
) -> int:
    """A copy of `e` on allowed nodes; `node_first`: first a node, then a copy on it; `by_slot` as in `_serve`."""
    if node_first:
        skip = np.int64(draw % np.uint64(popcount(allowed)))
        for _ in range(skip):
            allowed &= allowed - _ONE
        allowed &= ~allowed + _ONE
        draw = mix_word(draw)
    start, stop = tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]
    usable = 0
    for s in range(start, stop):
        if allowed >> np.uint64(tables.slot_node[s]) & _ONE:
            usable += tables.slot_times[s] if by_slot else 1
    skip = np.int64(draw % np.uint64(usable))
    for s in range(start, stop):
        if allowed >> np.uint64(tables.slot_node[s]) & _ONE:
            skip -= tables.slot_times[s] if by_slot else 1
            if skip < 0:
                return s
    return -1
