"""Top-k sets as rows of ids: how many experts a row names, and which rows are distinct.

Unsigned ids are of full sets. Among signed ids -1 fills the places that a set of fewer experts leaves, from its end.
Most tokens share their set with others, and equal sets cost the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.kernel import inlined_kernel


@inlined_kernel
def set_size(ids_K: npt.NDArray[Any]) -> int:
    """Experts of one set, for kernels; compiled for unsigned ids, the length of the row."""
    size = len(ids_K)
    while size > 0 and ids_K[size - 1] < 0:
        size -= 1
    return size


def any_short(ids_TK: npt.NDArray[Any]) -> bool:
    """True if a set has fewer experts than places."""
    return ids_TK.dtype.kind == "i" and int(ids_TK[:, -1:].min(initial=0)) < 0


def count_assignments(ids_TK: npt.NDArray[Any]) -> int:
    """Experts that the tokens visit, all together."""
    return int(np.count_nonzero(ids_TK >= 0)) if any_short(ids_TK) else ids_TK.size


def load_of(ids_TK: npt.NDArray[Any], num_experts: int) -> npt.NDArray[np.int64]:
    """How many tokens visit each expert, int64 [E]."""
    ids = ids_TK[ids_TK >= 0] if any_short(ids_TK) else ids_TK.ravel()
    return np.bincount(ids, minlength=num_experts)


def distinct_sets(ids_TK: npt.NDArray[Any], num_experts: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Distinct sets, int32 [U, K], ids ascending and then -1 in a row, and how often each occurs, int64 [U]."""
    sets, _, count = distinct_sets_with_homes(ids_TK, np.full(len(ids_TK), -1, dtype=np.int32), num_experts)
    return sets, count


def distinct_sets_with_homes(
    ids_TK: npt.NDArray[Any], home_T: npt.NDArray[np.int32], num_experts: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Distinct (set, home) pairs: sets int32 [U, K], homes int32 [U] and counts int64 [U]; -1 is the random home."""
    ordered = _ascending(ids_TK)
    words = _words(home_T, ordered, num_experts)
    order = np.lexsort(words[::-1])
    new = np.zeros(len(order), dtype=bool)
    new[:1] = True
    for word in words:
        ascending = word[order]
        new[1:] |= ascending[1:] != ascending[:-1]
    first, count = order[new], np.diff(np.append(np.flatnonzero(new), len(order)))
    return ordered[first].astype(np.int32), home_T[first], count.astype(np.int64)


def _words(
    home_T: npt.NDArray[np.int32], ordered_TK: npt.NDArray[Any], num_experts: int
) -> list[npt.NDArray[np.uint64]]:
    """Every row, its home first, as words of 64 bits, which sort much faster than rows do: mostly one."""
    id_bits = int(num_experts - 1 + any_short(ordered_TK)).bit_length()
    mask = np.uint64((1 << id_bits) - 1)  # all bits set, which is no id where sets are short, is -1
    words = [(home_T + 1).astype(np.uint64)]
    free = 64 - int(home_T.max(initial=-1) + 1).bit_length()
    for column in ordered_TK.T:
        if free < id_bits:
            words.append(np.zeros(len(home_T), dtype=np.uint64))
            free = 64
        words[-1] = (words[-1] << np.uint64(id_bits)) | (column.astype(np.uint64) & mask)
        free -= id_bits
    return words


def _ascending(ids_TK: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Rows sorted, -1 last: as an unsigned number -1 is the largest."""
    unsigned = np.dtype(f"u{ids_TK.dtype.itemsize}")
    return np.sort(ids_TK.view(unsigned), axis=1).view(ids_TK.dtype)
