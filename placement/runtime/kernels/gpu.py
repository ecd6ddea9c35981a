"""Triton kernels: rows gathered (pack, unpack), and rows summed by destination (combine). No atomics: same bits always.

With TRITON_INTERPRET=1 they run on CPU tensors, which is how they are tested without a GPU. The same in plain torch is
`torch.index_select` and `placement.runtime.reduce`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024


@triton.jit
def _gather(source: Any, index: Any, out: Any, columns: Any, stride: Any, out_stride: Any, BLOCK: tl.constexpr) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    from_row = tl.load(index + row)
    values = tl.load(source + from_row * stride + column, mask=inside)
    tl.store(out + row * out_stride + column, values, mask=inside)


@triton.jit
def _sum(
    values: Any,
    order: Any,
    start: Any,
    weight: Any,
    out: Any,
    columns: Any,
    stride: Any,
    WEIGHTED: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for entry in range(tl.load(start + row), tl.load(start + row + 1)):
        from_row = tl.load(order + entry)
        value = tl.load(values + from_row * stride + column, mask=inside, other=0).to(tl.float32)
        if WEIGHTED:
            value = value * tl.load(weight + from_row)
        total += value
    tl.store(out + row * columns + column, total.to(out.dtype.element_ty), mask=inside)


def gather_rows(source: Tensor, index_A: Tensor, out: Tensor | None = None) -> Tensor:
    """`source[index_A]` of a matrix whose rows may be parts of longer rows; bytes go as words if they can."""
    columns, index_A = source.shape[1], index_A.contiguous()
    if out is None:
        out = source.new_empty((len(index_A), columns))
    wide, wide_out = _words(source), _words(out)
    if wide is None or wide_out is None:
        wide, wide_out = source, out
    columns = wide.shape[1]
    if out.numel():
        grid = (len(index_A), triton.cdiv(columns, BLOCK))
        _gather[grid](wide, index_A, wide_out, columns, wide.stride(0), wide_out.stride(0), BLOCK=BLOCK)
    return out


def _words(rows: Tensor) -> Tensor | None:
    """The same rows as 4-byte words, or None where they are not made of such."""
    size = rows.element_size()
    fits = all(number * size % 4 == 0 for number in (rows.shape[1], rows.stride(0), rows.storage_offset()))
    return rows.view(torch.int32) if fits and rows.stride(1) == 1 else None


def sum_rows(values_SD: Tensor, order_S: Tensor, start: Tensor, weight_S: Tensor | None, out: Tensor) -> Tensor:
    """See `placement.runtime.reduce.sum_rows`: row r sums the entries `order_S[start[r] : start[r + 1]]`."""
    if out.numel():
        grid = (len(out), triton.cdiv(out.shape[1], BLOCK))
        weighted = weight_S is not None
        weight = weight_S if weight_S is not None else start  # any pointer; not read
        _sum[grid](
            values_SD, order_S, start, weight, out, out.shape[1], values_SD.stride(0), WEIGHTED=weighted, BLOCK=BLOCK
        )
    return out
