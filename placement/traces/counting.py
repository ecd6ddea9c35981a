"""Counting kernels (numba, cached on disk, without the GIL)."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

OK, ID_OUT_OF_RANGE, DUPLICATE_ID = 0, 1, 2


@nb.njit(cache=True, nogil=True)
def count_load(ids_N: npt.NDArray[Any], load_E: npt.NDArray[np.int64]) -> bool:
    """Add the occurrences of every id to `load_E`; False (and nothing added) if one is out of range.

    Four histograms side by side, because counting the same id twice in a row otherwise waits for the first store.
    """
    num_experts = load_E.shape[0]
    size = 256 if ids_N.itemsize == 1 else 65536
    part = np.zeros((4, size), dtype=np.uint32)
    total = ids_N.shape[0]
    whole = total - total % 4
    for start in range(0, whole, 1 << 30):
        for i in range(start, min(whole, start + (1 << 30)), 4):
            part[0, ids_N[i]] += np.uint32(1)
            part[1, ids_N[i + 1]] += np.uint32(1)
            part[2, ids_N[i + 2]] += np.uint32(1)
            part[3, ids_N[i + 3]] += np.uint32(1)
    for i in range(whole, total):
        part[0, ids_N[i]] += np.uint32(1)
    for e in range(num_experts, size):
        if part[0, e] + part[1, e] + part[2, e] + part[3, e] > 0:
            return False
    for e in range(num_experts):
        load_E[e] += np.int64(part[0, e]) + part[1, e] + part[2, e] + part[3, e]
    return True


@nb.njit(cache=True, nogil=True)
def count_sets(
    ids_TK: npt.NDArray[Any],
    row_T: npt.NDArray[np.int32],
    coact_EE: npt.NDArray[np.int64],
    profile_QE: npt.NDArray[np.uint32],
) -> tuple[int, int]:
    """Add top-k sets to co-activations (upper triangle) and request profiles; returns (fault, row of the fault).

    row_T: row of each token's request in `profile_QE`, or -1 where no profile is kept.
    """
    num_experts = coact_EE.shape[0]
    top_k = ids_TK.shape[1]
    for t in range(ids_TK.shape[0]):
        row = row_T[t]
        for k in range(top_k):
            a = np.int64(ids_TK[t, k])
            if a >= num_experts:
                return ID_OUT_OF_RANGE, t
            if row >= 0:
                profile_QE[row, a] += np.uint32(1)
            for j in range(k):
                b = np.int64(ids_TK[t, j])
                if a == b:
                    return DUPLICATE_ID, t
                coact_EE[min(a, b), max(a, b)] += 1
    return OK, 0


@nb.njit(cache=True, nogil=True)
def check_ids(ids_TK: npt.NDArray[Any], num_experts: int) -> tuple[int, int]:
    """(fault, row of the fault) of the first top-k set that is not one."""
    for t in range(ids_TK.shape[0]):
        for k in range(ids_TK.shape[1]):
            if ids_TK[t, k] >= num_experts:
                return ID_OUT_OF_RANGE, t
            for j in range(k):
                if ids_TK[t, k] == ids_TK[t, j]:
                    return DUPLICATE_ID, t
    return OK, 0
