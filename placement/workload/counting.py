"""Counting kernels (numba, cached on disk, without the GIL)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.hash64 import GOLDEN, mix_word
from placement.support.kernel import kernel


@cache
def set_counter(top_k: int) -> Callable[..., None]:
    """The kernel that counts sets of exactly so many experts: known, its inner loops are unrolled."""

    @kernel
    def count_sets(
        ids_TK: npt.NDArray[Any],
        side_T: npt.NDArray[np.int8],
        row_T: npt.NDArray[np.int32],
        pairs_ZEE: npt.NDArray[np.uint32],
        profile_QLE: npt.NDArray[np.uint32],
        layer: int,
    ) -> None:
        """Add each pair of a token, in the order in which the token has it, to those of the token's side, and its
        experts to the profile of its request.

        side_T: side of each token, or -1, which is not counted; row_T: row of `profile_QLE`, or -1. A token of one
        expert adds to the diagonal, where else only an expert that a set names twice does. All ids must be below E:
        nothing is checked here.
        """
        for t in range(ids_TK.shape[0]):
            side = side_T[t]
            if side < 0:
                continue
            if top_k == 1:
                pairs_ZEE[side, ids_TK[t, 0], ids_TK[t, 0]] += np.uint32(1)
            for k in range(1, top_k):
                a = np.intp(ids_TK[t, k])
                for j in range(k):
                    pairs_ZEE[side, a, np.intp(ids_TK[t, j])] += np.uint32(1)
            row = row_T[t]
            if row >= 0:
                for k in range(top_k):
                    profile_QLE[row, layer, np.intp(ids_TK[t, k])] += np.uint32(1)

    return count_sets


@kernel
def count_short_sets(
    ids_TK: npt.NDArray[Any],
    side_T: npt.NDArray[np.int8],
    row_T: npt.NDArray[np.int32],
    pairs_ZEE: npt.NDArray[np.uint32],
    profile_QLE: npt.NDArray[np.uint32],
    layer: int,
) -> None:
    """As the kernel of `set_counter`, of sets that end at the first -1; each expert of each token adds to the diagonal,
    for the pairs of a set no longer say how many experts it has."""
    for t in range(ids_TK.shape[0]):
        side, row = side_T[t], row_T[t]
        if side < 0:
            continue
        for k in range(ids_TK.shape[1]):
            if ids_TK[t, k] < 0:
                break
            a = np.intp(ids_TK[t, k])
            for j in range(k + 1):
                pairs_ZEE[side, a, np.intp(ids_TK[t, j])] += np.uint32(1)
            if row >= 0:
                profile_QLE[row, layer, a] += np.uint32(1)


@kernel
def take_rows(ids_TK: npt.NDArray[Any], token_R: npt.NDArray[np.int64], out_RLK: npt.NDArray[Any], layer: int) -> None:
    """`out_RLK[:, layer] = ids_TK[token_R]`, which numpy does slowly."""
    for r in range(token_R.shape[0]):
        for k in range(ids_TK.shape[1]):
            out_RLK[r, layer, k] = ids_TK[token_R[r], k]


@kernel
def look_up(
    request_T: npt.NDArray[np.int32],
    key_Q: npt.NDArray[np.uint64],
    side_Q: npt.NDArray[np.int8],
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int8]]:
    """Key and side of each token's request."""
    size = len(request_T)
    key_T, side_T = np.empty(size, np.uint64), np.empty(size, np.int8)
    for t in range(size):
        q = request_T[t]
        key_T[t], side_T[t] = key_Q[q], side_Q[q]
    return key_T, side_T


@kernel
def token_keys(
    owner_T: npt.NDArray[np.uint64],
    position_T: npt.NDArray[np.int32],
    phase_T: npt.NDArray[np.uint8],
    ids_TV: npt.NDArray[Any],
) -> npt.NDArray[np.uint64]:
    """A pseudo-random key of every token, uint64 [T], of its request's key and what the token is.

    ids_TV: some of the experts that it visits; folders that number their requests alike must not share keys.
    """
    key_T = np.empty(len(owner_T), dtype=np.uint64)
    for t in range(len(owner_T)):
        place = np.uint64(np.int64(position_T[t])) * np.uint64(2) + np.uint64(phase_T[t])
        key = mix_word((owner_T[t] ^ mix_word(place + GOLDEN)) + GOLDEN)
        for v in range(ids_TV.shape[1]):
            key = mix_word((key ^ np.uint64(ids_TV[t, v])) + GOLDEN)
        key_T[t] = key
    return key_T


@kernel
def hash_words(word_N: npt.NDArray[np.uint64], first: int) -> np.uint64:
    """A hash of words that have the numbers `first`, `first + 1`, ...; hashes of pieces add up to that of the whole.

    It tells changes of files apart, not the work of an adversary.
    """
    total = np.uint64(0)
    for i in range(word_N.shape[0]):
        word = word_N[i] + np.uint64(first + i) * GOLDEN
        word = (word ^ (word >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
        total += word ^ (word >> np.uint64(32))
    return total
