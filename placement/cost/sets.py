"""Distinct top-k sets: most tokens share theirs with others, and equal sets cost the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt


def distinct_sets(ids_TK: npt.NDArray[Any], num_experts: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Distinct sets, int32 [U, K], ids ascending in a row, and how often each occurs, int64 [U]."""
    sets, _, count = distinct_sets_with_homes(ids_TK, np.full(len(ids_TK), -1, dtype=np.int32), num_experts)
    return sets, count


def distinct_sets_with_homes(
    ids_TK: npt.NDArray[Any], home_T: npt.NDArray[np.int32], num_experts: int
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Distinct (set, home) pairs: sets int32 [U, K], homes int32 [U] and counts int64 [U]; -1 is the random home."""
    ordered = np.sort(ids_TK, axis=1)
    homes = home_T.astype(np.int64) + 1
    home_bits, id_bits = int(homes.max(initial=0)).bit_length(), int(num_experts - 1).bit_length()
    if home_bits + id_bits * ordered.shape[1] <= 64:  # a row fits one word, which sorts much faster than rows do
        key = homes.astype(np.uint64)
        for column in ordered.T:
            key = (key << np.uint64(id_bits)) | column.astype(np.uint64)
        _, first, count = np.unique(key, return_index=True, return_counts=True)
    else:
        rows = np.concatenate([homes[:, None], ordered], axis=1)
        _, first, count = np.unique(rows, axis=0, return_index=True, return_counts=True)
    return ordered[first].astype(np.int32), home_T[first], count.astype(np.int64)
