"""Kernels of `survey` and `cleaning` (numba, cached on disk, without the GIL)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.kernel import kernel

OK, ID_OUT_OF_RANGE, DUPLICATE_ID, CHANGED = 0, 1, 2, 3
TOKEN, BLANK, ALIKE = 0, 1, 2
UNSEEN, SEVERAL = -3, -2
NEVER = 2**31  # no id is as large
# of ids from the limit on: how many, fewest and most in a set, the largest, and how often an expert came after one
PLACES, LEAST, MOST, LARGEST, INNER, BEYOND = 0, 1, 2, 3, 4, 5


@kernel
def row_kinds(
    ids_LTK: npt.NDArray[np.int32],
    request_T: npt.NDArray[np.int32],
    kind_T: npt.NDArray[np.uint8],
    repeat_T: npt.NDArray[np.bool_],
) -> bool:
    """BLANK: no set has an expert. ALIKE: all sets are the same ids in the same order, but for those of nothing but 0
    and -1; or every set is expert 0 or none. TOKEN: any other. `repeat_T`: the row is the one before it in its request.
    Returns False where an id of a row that is no TOKEN is below -1.
    """
    sound = True
    num_layers, num_rows, width = ids_LTK.shape
    for t in range(num_rows):
        first = -1
        lone = False
        kind = ALIKE
        for layer in range(num_layers):
            positive = False
            size = 0
            for k in range(width):
                positive |= ids_LTK[layer, t, k] > 0
                size += ids_LTK[layer, t, k] >= 0
                sound &= ids_LTK[layer, t, k] >= -1
            if not positive:
                lone |= size == 1
            elif first < 0:
                first = layer
            else:
                for k in range(width):
                    if ids_LTK[layer, t, k] != ids_LTK[first, t, k]:
                        kind = TOKEN
                        break
                if kind == TOKEN:
                    break
        if first < 0 and not lone:
            kind = BLANK
        kind_T[t] = kind
        repeat = t > 0 and kind != BLANK and request_T[t] == request_T[t - 1]
        layer = 0
        while repeat and layer < num_layers:
            for k in range(width):
                repeat &= ids_LTK[layer, t, k] == ids_LTK[layer, t - 1, k]
            layer += 1
        repeat_T[t] = repeat
    return sound


@kernel
def look_at_sets(
    ids_LTK: npt.NDArray[np.int32],
    skip_T: npt.NDArray[np.bool_],
    limit: int,
    largest_L: npt.NDArray[np.int32],
    most_LZ: npt.NDArray[np.int64],
    least_LZ: npt.NDArray[np.int64],
    last_L: npt.NDArray[np.int32],
    beyond_LX: npt.NDArray[np.int64],
) -> bool:
    """What the sets of the rows that are not skipped look like; False where an id is below -1.

    limit      ids from there on are no experts
    largest_L  raised to the largest expert
    most_LZ, least_LZ  most and fewest experts of a set, by how many 0s stand at its end; a set of nothing but 0s, if it
               has several, is empty and counts as one of 0 experts
    last_L     the id in the last place of all sets, UNSEEN, or SEVERAL
    beyond_LX  see BEYOND
    """
    sound = True
    for layer in range(ids_LTK.shape[0]):
        for t in range(ids_LTK.shape[1]):
            if skip_T[t]:
                continue
            size = 0
            zeros = 0
            beyond = 0
            for k in range(ids_LTK.shape[2]):
                expert = ids_LTK[layer, t, k]
                if expert < 0:
                    sound &= expert == -1
                elif expert >= limit:
                    beyond += 1
                    beyond_LX[layer, LARGEST] = max(beyond_LX[layer, LARGEST], expert)
                else:
                    size += 1
                    zeros = zeros + 1 if expert == 0 else 0
                    largest_L[layer] = max(largest_L[layer], expert)
                    beyond_LX[layer, INNER] += beyond
            if size > 1 and zeros == size:
                size = zeros = 0
            most_LZ[layer, zeros] = max(most_LZ[layer, zeros], size)
            least_LZ[layer, zeros] = min(least_LZ[layer, zeros], size)
            if size + beyond == 0:
                continue
            beyond_LX[layer, PLACES] += beyond
            beyond_LX[layer, MOST] = max(beyond_LX[layer, MOST], beyond)
            beyond_LX[layer, LEAST] = min(beyond_LX[layer, LEAST], beyond)
            last = ids_LTK[layer, t, ids_LTK.shape[2] - 1]
            if last_L[layer] == UNSEEN:
                last_L[layer] = last
            elif last_L[layer] != last:
                last_L[layer] = SEVERAL
    return sound


@kernel
def blank_rows(ids_LTK: npt.NDArray[np.int32], layers: npt.NDArray[np.int64], blank_T: npt.NDArray[np.bool_]) -> None:
    """Which rows have no expert in any of these layers."""
    for t in range(ids_LTK.shape[1]):
        blank = True
        for layer in layers:
            size = 0
            positive = False
            for k in range(ids_LTK.shape[2]):
                positive |= ids_LTK[layer, t, k] > 0
                size += ids_LTK[layer, t, k] >= 0
            if positive or size == 1:
                blank = False
                break
        blank_T[t] = blank


@kernel
def match_rows(ids_LTK: npt.NDArray[np.int32], row_PLK: npt.NDArray[np.int32], found_T: npt.NDArray[np.int32]) -> None:
    """Which of the given rows every row is, or -1."""
    for t in range(ids_LTK.shape[1]):
        found_T[t] = -1
        for p in range(row_PLK.shape[0]):
            same = True
            layer = 0
            while same and layer < ids_LTK.shape[0]:
                for k in range(ids_LTK.shape[2]):
                    same &= ids_LTK[layer, t, k] == row_PLK[p, layer, k]
                layer += 1
            if same:
                found_T[t] = p
                break


@kernel
def translate(
    ids_LTK: npt.NDArray[np.int32],
    weights_LTK: npt.NDArray[np.uint16],
    layers_N: npt.NDArray[np.int64],
    rows_R: npt.NDArray[np.int64],
    phy2log_LP: npt.NDArray[np.int32],
    limit: int,
    places_N: npt.NDArray[np.int64],
    filled_N: npt.NDArray[np.bool_],
    may_end: bool,
    out_NRK: npt.NDArray[Any],
    out_weights_NRK: npt.NDArray[np.uint16],
    size_NR: npt.NDArray[np.int32],
) -> tuple[int, int, int]:
    """Write the logical ids of chosen layers and rows, one after another, and how many each set has.

    limit, places_N, filled_N: as of `Survey`; `may_end`: sets may be short. Weights, of which there may be none, go
    with their ids, as bits. Returns (fault, layer, row) of the first fault; CHANGED where sets are other ones
    than were surveyed.
    """
    weighted = out_weights_NRK.size > 0
    top_k = out_NRK.shape[2]
    for number in range(layers_N.shape[0]):
        layer = layers_N[number]
        for r in range(rows_R.shape[0]):
            t = rows_R[r]
            end = min(places_N[number], ids_LTK.shape[2])
            zeros = 0
            while zeros < end and ids_LTK[layer, t, end - 1 - zeros] == 0:
                zeros += 1
            if zeros > 1 or (zeros == 1 and filled_N[number]):
                end -= zeros
            size = 0
            for k in range(end):
                physical = ids_LTK[layer, t, k]
                if physical == -1 or physical >= limit:
                    continue
                if physical < 0 or physical >= phy2log_LP.shape[1]:
                    return ID_OUT_OF_RANGE, layer, t
                expert = phy2log_LP[layer, physical]
                for j in range(size):
                    if out_NRK[number, r, j] == expert:
                        return DUPLICATE_ID, layer, t
                if size == top_k:
                    return CHANGED, layer, t
                out_NRK[number, r, size] = expert
                if weighted:
                    out_weights_NRK[number, r, size] = weights_LTK[layer, t, k]
                size += 1
            size_NR[number, r] = size
            if size < top_k and not may_end:
                return CHANGED, layer, t
            for k in range(size, top_k):
                out_NRK[number, r, k] = -1
                if weighted:
                    out_weights_NRK[number, r, k] = 0
    return OK, 0, 0
