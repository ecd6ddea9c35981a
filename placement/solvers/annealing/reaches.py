"""Where a token can be served for no further send: the reach of a set, as bytes of one word (numba, up to 8 nodes).

The reach of experts from home h is h and every node of their smallest covers from h. One further expert costs no
further send if a node of the reach hosts it, and exactly one send if none does. So the reaches of the others of a set,
from all homes, say what any nodes of one member would cost.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.solvers.annealing.anneal_common import ONE, ZERO, Ids, Masks
from placement.support.kernel import inlined_kernel, inner_search_kernel

MOST_NODES = 8  # a home has a byte of a word
UNIT = 840  # shares of up to 8 nodes are whole numbers of 1 / UNIT
EVERY_BYTE = np.uint64(0x0101010101010101)
EACH_HOME = np.uint64(0x8040201008040201)  # byte h is the node h alone

Counts = npt.NDArray[np.int32]


class Reaches(NamedTuple):
    """Tables for N nodes. Words of 256 bits W stand for families of node sets: a bit for each node set.

    away_MS    int32 [2^N, 2^N], 1 if no node of the mask M is in the reach S
    share_MNS  int32 [2^N, N, 2^N], the part of an expert on M that node N serves if all nodes of M in the reach S, or
               else all of M, serve alike, times UNIT
    homes_M    uint64 [2^N], byte h is full if node h is in the mask
    meets_MW   uint64 [2^N, 4], the node sets that meet the mask
    holds_NW   uint64 [N, 4], the node sets that hold the node
    sized_CW   uint64 [N + 1, 4], the node sets of C nodes
    """

    away_MS: Counts
    share_MNS: Counts
    homes_M: Masks
    meets_MW: Masks
    holds_NW: Masks
    sized_CW: Masks


@cache
def reaches_of(num_nodes: int) -> Reaches:
    """The tables for at most MOST_NODES nodes."""
    mask_M = np.arange(1 << num_nodes)
    bit_MN = mask_M[:, None] >> np.arange(num_nodes) & 1
    met_MS = mask_M[:, None] & mask_M
    served_MS = np.where(met_MS == 0, mask_M[:, None], met_MS)
    part_MS = UNIT // np.maximum(bit_MN[served_MS].sum(axis=2), 1)
    full_N = np.uint64(255) << np.arange(num_nodes, dtype=np.uint64) * np.uint64(8)
    return Reaches(
        away_MS=(met_MS == 0).astype(np.int32),
        share_MNS=np.ascontiguousarray((bit_MN[served_MS] * part_MS[:, :, None]).transpose(0, 2, 1), dtype=np.int32),
        homes_M=(bit_MN.astype(np.uint64) * full_N).sum(axis=1, dtype=np.uint64),
        meets_MW=_words(met_MS != 0),
        holds_NW=_words(bit_MN.T == 1),
        sized_CW=_words(np.arange(num_nodes + 1)[:, None] == bit_MN.sum(axis=1)),
    )


def _words(flag_XS: npt.NDArray[np.bool_]) -> Masks:
    """Families of node sets as words."""
    packed_XB = np.packbits(np.pad(flag_XS, ((0, 0), (0, 256 - flag_XS.shape[1]))), axis=1, bitorder="little")
    return np.ascontiguousarray(packed_XB).view(np.uint64)


@inlined_kernel
def hosts_of_set(t: int, sets_UK: Ids, host_E: Masks, several_K: Masks) -> tuple[np.uint64, np.uint64, int]:
    """The only nodes of one and of two members or more, and how many masks of several nodes go to `several_K`."""
    once, twice, num_several = ZERO, ZERO, 0
    for k in range(sets_UK.shape[1]):
        host = host_E[sets_UK[t, k]]
        if host & (host - ONE) == ZERO:  # nobody, who fills short sets, is on no node
            twice |= once & host
            once |= host
        else:
            several_K[num_several] = host
            num_several += 1
    return once, twice, num_several


@inlined_kernel
def hosts_without(
    t: int, v: int, u: int, host_u: np.uint64, sets_UK: Ids, host_E: Masks, several_K: Masks
) -> tuple[np.uint64, int]:
    """The only nodes of the members of set t but for v, with u on `host_u`; the other masks go to `several_K`."""
    forced, num_several = ZERO, 0
    for k in range(sets_UK.shape[1]):
        e = sets_UK[t, k]
        if e != v:
            host = host_u if e == u else host_E[e]
            if host & (host - ONE) == ZERO:
                forced |= host
            else:
                several_K[num_several] = host
                num_several += 1
    return forced, num_several


@inlined_kernel
def open_masks(forced: np.uint64, skip: int, num_several: int, several_K: Masks, open_K: Masks) -> int:
    """Write the masks that `forced` does not meet, but for number `skip`, to `open_K`; returns how many."""
    num_open = 0
    for i in range(num_several):
        if i != skip and several_K[i] & forced == ZERO:
            open_K[num_open] = several_K[i]
            num_open += 1
    return num_open


@inlined_kernel
def reach_of(
    forced: np.uint64,
    open_K: Masks,
    num_open: int,
    homes_M: Masks,
    meets_MW: Masks,
    holds_NW: Masks,
    sized_CW: Masks,
) -> np.uint64:
    """The reach from each home of experts that need the nodes `forced` and meet the open masks."""
    reach: np.uint64 = forced * EVERY_BYTE | EACH_HOME
    if num_open == 1:
        reach |= open_K[0] * EVERY_BYTE & ~homes_M[open_K[0]]
    elif num_open == 2:
        a, b = open_K[0], open_K[1]
        at_a, at_b = homes_M[a], homes_M[b]
        reach |= (b * EVERY_BYTE & at_a & ~at_b) | (a * EVERY_BYTE & at_b & ~at_a)
        reach |= _both(a, b) * EVERY_BYTE & ~at_a & ~at_b
    elif num_open == 3:
        reach |= _reach_of_three(open_K[0], open_K[1], open_K[2], homes_M)
    elif num_open > 3:
        reach |= _reach_of_many(forced, open_K, num_open, meets_MW, holds_NW, sized_CW)
    return reach


@inlined_kernel
def _both(a: np.uint64, b: np.uint64) -> np.uint64:
    """The nodes of the smallest covers of two masks."""
    return a & b if a & b != ZERO else a | b


@inner_search_kernel
def _reach_of_three(a: np.uint64, b: np.uint64, c: np.uint64, homes_M: Masks) -> np.uint64:
    """The covers of those of three masks that the home is not in."""
    at_a, at_b, at_c = homes_M[a], homes_M[b], homes_M[c]
    ab, ac, bc = a & b, a & c, b & c
    every = ab & c
    if every == ZERO:
        for pair, other in ((ab, c), (ac, b), (bc, a)):
            every |= pair | other if pair != ZERO else ZERO
    if every == ZERO:
        every = a | b | c
    reach: np.uint64 = every * EVERY_BYTE & ~(at_a | at_b | at_c)
    reach |= _both(a, b) * EVERY_BYTE & at_c & ~(at_a | at_b)
    reach |= _both(a, c) * EVERY_BYTE & at_b & ~(at_a | at_c)
    reach |= _both(b, c) * EVERY_BYTE & at_a & ~(at_b | at_c)
    reach |= a * EVERY_BYTE & at_b & at_c & ~at_a
    reach |= b * EVERY_BYTE & at_a & at_c & ~at_b
    reach |= c * EVERY_BYTE & at_a & at_b & ~at_c
    return reach


@inner_search_kernel
def _reach_of_many(
    forced: np.uint64, open_K: Masks, num_open: int, meets_MW: Masks, holds_NW: Masks, sized_CW: Masks
) -> np.uint64:
    """`reach_of`, by families: the node sets that meet all masks and hold the forced nodes."""
    num_nodes = holds_NW.shape[0]
    all_nodes = sized_CW.shape[0]
    w0, w1, w2, w3 = ~ZERO, ~ZERO, ~ZERO, ~ZERO
    for i in range(num_open):
        m = open_K[i]
        w0, w1, w2, w3 = w0 & meets_MW[m, 0], w1 & meets_MW[m, 1], w2 & meets_MW[m, 2], w3 & meets_MW[m, 3]
    for n in range(num_nodes):
        if forced >> np.uint64(n) & ONE:
            w0, w1, w2, w3 = w0 & holds_NW[n, 0], w1 & holds_NW[n, 1], w2 & holds_NW[n, 2], w3 & holds_NW[n, 3]
    reach = ZERO
    for h in range(num_nodes):
        # node sets that hold the home, from the smallest
        v0, v1, v2, v3 = w0 & holds_NW[h, 0], w1 & holds_NW[h, 1], w2 & holds_NW[h, 2], w3 & holds_NW[h, 3]
        for c in range(1, all_nodes):
            s0, s1, s2, s3 = v0 & sized_CW[c, 0], v1 & sized_CW[c, 1], v2 & sized_CW[c, 2], v3 & sized_CW[c, 3]
            if s0 | s1 | s2 | s3 != ZERO:
                for n in range(num_nodes):
                    held = s0 & holds_NW[n, 0] | s1 & holds_NW[n, 1] | s2 & holds_NW[n, 2] | s3 & holds_NW[n, 3]
                    if held != ZERO:
                        reach |= ONE << np.uint64(8 * h + n)
                break
    return reach
