"""Rows summed by destination on a CPU, in numba: in fp32 and in a fixed order. bfloat16 comes as its bits, uint16.

Up to four rows of one sum are read side by side, so that the sum stays in registers until it is rounded and written.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt
from numba.extending import overload

from placement.support.kernel import kernel

Ints = npt.NDArray[np.int64]
Matrix = npt.NDArray[Any]

_HALF, _ONE, _SIXTEEN = np.int32(0x7FFF), np.int32(1), np.int32(16)
_SIGN_OFF, _INFINITE, _QUIET = np.int32(0x7FFFFFFF), np.int32(0x7F800000), np.int32(0x40)
_NOTHING = np.float32(0)  # each sum starts from it, so that -0 alone becomes 0


@kernel
def sum_rows(values_SD: Matrix, order_S: Ints, start: Ints, weight_S: Matrix, out: Matrix) -> None:
    """See `placement.runtime.reduce.sum_rows`; no weights are all 1. Weighted values are added up in fp32."""
    blank_D = np.zeros(values_SD.shape[1], dtype=values_SD.dtype)  # with weight 0 in the place of rows that lack
    total_D = np.empty(values_SD.shape[1], dtype=np.float32)
    weighted = len(weight_S) > 0
    for row in range(len(start) - 1):
        first, number = start[row], start[row + 1] - start[row]
        if number > 4:
            total_D[:] = _NOTHING
            for s in order_S[first : first + number]:
                _add(total_D, values_SD[s], weight_S[s] if weighted else np.float32(1))
            _store(out[row], total_D)
            continue
        a_D, a = _entry(values_SD, order_S, weight_S, blank_D, first, number > 0)
        b_D, b = _entry(values_SD, order_S, weight_S, blank_D, first + 1, number > 1)
        if number <= 2:
            _store_two(out[row], a_D, a, b_D, b)
            continue
        c_D, c = _entry(values_SD, order_S, weight_S, blank_D, first + 2, True)
        d_D, d = _entry(values_SD, order_S, weight_S, blank_D, first + 3, number > 3)
        _store_four(out[row], a_D, a, b_D, b, c_D, c, d_D, d)


@kernel
def _entry(
    values_SD: Matrix, order_S: Ints, weight_S: Matrix, blank_D: Matrix, entry: int, there: bool
) -> tuple[Matrix, np.float32]:
    """The values and the weight of an entry, or the blank row and 0 where there is none."""
    if not there:
        return blank_D, _NOTHING
    s = order_S[entry]
    return values_SD[s], weight_S[s] if len(weight_S) else np.float32(1)


@kernel
def _add(total_D: Matrix, values_D: Matrix, weight: np.float32) -> None:
    for d in range(len(total_D)):
        total_D[d] += weight * _wide(values_D[d])


@kernel
def _store(out_D: Matrix, total_D: Matrix) -> None:
    for d in range(len(out_D)):
        out_D[d] = _narrow(total_D[d], out_D)


@kernel
def _store_two(out_D: Matrix, a_D: Matrix, a: np.float32, b_D: Matrix, b: np.float32) -> None:
    for d in range(len(out_D)):
        out_D[d] = _narrow(_NOTHING + a * _wide(a_D[d]) + b * _wide(b_D[d]), out_D)


@kernel
def _store_four(
    out_D: Matrix,
    a_D: Matrix,
    a: np.float32,
    b_D: Matrix,
    b: np.float32,
    c_D: Matrix,
    c: np.float32,
    d_D: Matrix,
    d: np.float32,
) -> None:
    for x in range(len(out_D)):
        total = _NOTHING + a * _wide(a_D[x]) + b * _wide(b_D[x]) + c * _wide(c_D[x]) + d * _wide(d_D[x])
        out_D[x] = _narrow(total, out_D)


def _wide(value: Any) -> Any:
    """A value in fp32."""


def _narrow(total: Any, like: Any) -> Any:
    """A sum in fp32 as `like` has its values: bits of bfloat16 are those of the nearest, ties to even."""


@overload(_wide)
def _wide_of(value: Any) -> Any:
    def bfloat16(value: Any) -> Any:
        return np.int32(np.int32(value) << _SIXTEEN).view(np.float32)

    def float32(value: Any) -> Any:
        return value

    return bfloat16 if value == nb.types.uint16 else float32


@overload(_narrow)
def _narrow_of(total: Any, like: Any) -> Any:
    def bfloat16(total: Any, like: Any) -> Any:
        bits = np.float32(total).view(np.int32)  # int32 throughout: numba makes 64 bits of uint32
        high = np.int32(bits >> _SIXTEEN)
        rounded = np.int32(np.int32(bits + _HALF) + np.int32(high & _ONE)) >> _SIXTEEN
        no_number = np.int32(bits & _SIGN_OFF) > _INFINITE
        return np.uint16(np.int32(high | _QUIET) if no_number else rounded)

    def float32(total: Any, like: Any) -> Any:
        return np.float32(total)

    return bfloat16 if like.dtype == nb.types.uint16 else float32
