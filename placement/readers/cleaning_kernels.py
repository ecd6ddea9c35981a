"""Kernels of `cleaning` (numba, cached on disk, without the GIL)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.kernel import kernel

OK, ID_OUT_OF_RANGE, DUPLICATE_ID = 0, 1, 2
BROKEN = -1


@kernel
def set_widths(ids_LTK: npt.NDArray[np.int32], width_LT: npt.NDArray[np.int16], max_L: npt.NDArray[np.int32]) -> bool:
    """Experts of every set: 0 where nobody wrote, BROKEN where an id follows a -1. Raises `max_L` to the largest ids.

    Returns False where an id is below -1.
    """
    sound = True
    for layer in range(ids_LTK.shape[0]):
        for t in range(ids_LTK.shape[1]):
            width = 0
            zeros = 0
            broken = False
            for k in range(ids_LTK.shape[2]):
                expert = ids_LTK[layer, t, k]
                if expert < 0:
                    sound &= expert == -1
                    continue
                broken |= width < k
                width += 1
                zeros += expert == 0
                max_L[layer] = max(max_L[layer], expert)
            if width > 1 and zeros == width:
                width = 0
            width_LT[layer, t] = BROKEN if broken else width
    return sound


@kernel
def translate(
    ids_LTK: npt.NDArray[np.int32],
    layers: npt.NDArray[np.int64],
    rows_R: npt.NDArray[np.int64],
    phy2log_LP: npt.NDArray[np.int32],
    out_LRK: npt.NDArray[Any],
) -> tuple[int, int, int]:
    """Write the logical ids of chosen layers and rows to `out_LRK`; returns (fault, layer, row) of the first fault."""
    for number in range(layers.shape[0]):
        layer = layers[number]
        for r in range(rows_R.shape[0]):
            t = rows_R[r]
            for k in range(out_LRK.shape[2]):
                physical = ids_LTK[layer, t, k]
                if physical < 0 or physical >= phy2log_LP.shape[1]:
                    return ID_OUT_OF_RANGE, layer, t
                expert = phy2log_LP[layer, physical]
                for j in range(k):
                    if out_LRK[number, r, j] == expert:
                        return DUPLICATE_ID, layer, t
                out_LRK[number, r, k] = expert
    return OK, 0, 0
