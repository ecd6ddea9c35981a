"""The same for CPUs in numba: one pass over the rows, one thread, a fixed order."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.kernel import kernel

Ints = npt.NDArray[np.int64]
Matrix = npt.NDArray[Any]


@kernel
def order_rows(row_S: Ints, num_rows: int) -> tuple[Ints, Ints]:
    """Entries in the order of their rows, and where each row's entries start, [num_rows + 1]; others are left out."""
    start = np.zeros(num_rows + 1, dtype=np.int64)
    for row in row_S:
        if row < num_rows:
            start[row + 1] += 1
    for row in range(num_rows):
        start[row + 1] += start[row]
    order, place = np.empty(start[num_rows], dtype=np.int64), start[:num_rows].copy()
    for s in range(len(row_S)):
        row = row_S[s]
        if row < num_rows:
            order[place[row]] = s
            place[row] += 1
    return order, start


@kernel
def order_visits(local_RK: Ints, weight_RK: Matrix, num_slots: int) -> tuple[Ints, Ints, Matrix]:
    """Visits of rows to slots in the order of slots: visits of each slot, the row and the weight of each visit.

    local_RK  slots, `num_slots` where there is no visit
    """
    counts = np.zeros(num_slots, dtype=np.int64)
    for r in range(local_RK.shape[0]):
        for k in range(local_RK.shape[1]):
            if local_RK[r, k] < num_slots:
                counts[local_RK[r, k]] += 1
    place = np.cumsum(counts) - counts
    row_A, weight_A = np.empty(counts.sum(), dtype=np.int64), np.empty(counts.sum(), dtype=np.float32)
    for r in range(local_RK.shape[0]):
        for k in range(local_RK.shape[1]):
            slot = local_RK[r, k]
            if slot < num_slots:
                row_A[place[slot]] = r
                weight_A[place[slot]] = weight_RK[r, k]
                place[slot] += 1
    return counts, row_A, weight_A


@kernel
def distinct_members(slot_RK: Ints, member_P: Ints, size: int, last: int) -> tuple[Ints, Ints, Ints]:
    """Rows once for each distinct member among their slots, by member: rows for each, slots for each, the rows.

    member_P  of each slot, `size` and more for nobody; its last entry is for slot -1
    last      the member whose rows come after all others'; -1 for none
    """
    rows_X, assignments_X = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
    last_X = np.full(size, -1, dtype=np.int64)
    for r in range(slot_RK.shape[0]):
        for k in range(slot_RK.shape[1]):
            member = member_P[slot_RK[r, k]]
            if member < size:
                assignments_X[member] += 1
                rows_X[member] += last_X[member] != r
                last_X[member] = r
    place_X = np.cumsum(rows_X) - rows_X
    if last >= 0:
        place_X[last + 1 :] -= rows_X[last]
        place_X[last] = rows_X.sum() - rows_X[last]
    row_S = np.empty(rows_X.sum(), dtype=np.int64)
    last_X[:] = -1
    for r in range(slot_RK.shape[0]):
        for k in range(slot_RK.shape[1]):
            member = member_P[slot_RK[r, k]]
            if member < size and last_X[member] != r:
                last_X[member] = r
                row_S[place_X[member]] = r
                place_X[member] += 1
    return rows_X, assignments_X, row_S


@kernel
def pack_rows(head_TX: Matrix, body_TY: Matrix, row_S: Ints, out: Matrix) -> None:
    """Heads and bodies side by side, in words: `out[s]` starts with those of row `row_S[s]`."""
    head, body = head_TX.shape[1], body_TY.shape[1]
    for s in range(len(row_S)):
        _copy(out[s, :head], head_TX[row_S[s]])
        _copy(out[s, head : head + body], body_TY[row_S[s]])


@kernel
def _copy(out_X: Matrix, values_X: Matrix) -> None:
    for x in range(len(out_X)):
        out_X[x] = values_X[x]


@kernel
def check_choices(ids_TK: Matrix, weight_TK: Matrix, num_experts: int) -> tuple[Ints, bool, bool]:
    """Ids with -1 for those that do not exist; whether there are such; whether a weight of the others is no number."""
    checked = np.empty(ids_TK.shape, dtype=np.int64)
    wrong = bad = False
    for t in range(ids_TK.shape[0]):
        for k in range(ids_TK.shape[1]):
            e = ids_TK[t, k]
            exists = 0 <= e < num_experts
            checked[t, k] = e if exists else -1
            wrong |= not exists and e != -1
            bad |= e >= 0 and not np.isfinite(weight_TK[t, k])
    return checked, wrong, bad


@kernel
def admit(key_A: Ints, unit_A: Ints, load_A: Ints, limit_A: Ints, latest_first: bool) -> npt.NDArray[np.bool_]:
    """See `placement.runtime.admission.admit`; units are small whole numbers."""
    size = len(key_A)
    kept, least = np.zeros(size, dtype=np.bool_), unit_A.min() if size else 0
    used_U = np.zeros(unit_A.max() - least + 1 if size else 0, dtype=np.int64)
    falling_A = -key_A[::-1] if latest_first else -key_A
    for place in np.argsort(falling_A, kind="mergesort"):
        a = size - 1 - place if latest_first else place
        unit = unit_A[a] - least
        used_U[unit] += load_A[a]  # of those that do not fit too: nobody after them does
        kept[a] = used_U[unit] <= limit_A[a]
    return kept
