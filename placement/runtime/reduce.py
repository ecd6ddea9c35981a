"""Rows gathered, and rows summed by destination: in fp32 and in a fixed order, the same bits every time."""

from __future__ import annotations

import torch
from torch import Tensor

from placement.runtime.kernels import has_triton

CHUNK_BYTES = 1 << 20  # of sums at a time on a CPU: they stay in its cache


def sum_rows(
    values_SD: Tensor, row_S: Tensor, num_rows: int, weight_S: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """`out[r]` is the sum of `weight_S[s] * values_SD[s]` over all `s` with `row_S[s] == r`, typed as the values."""
    if out is None:
        out = values_SD.new_empty((num_rows, values_SD.shape[1]))
    order_S = torch.argsort(row_S, stable=True)
    start = torch.searchsorted(row_S[order_S], torch.arange(num_rows + 1, device=row_S.device))
    if not values_SD.is_cuda:
        return _on_cpu(values_SD, order_S, start, weight_S, out)
    if has_triton():
        from placement.runtime.kernels import gpu

        return gpu.sum_rows(values_SD, order_S, start, weight_S, out)
    values = values_SD.float() if weight_S is None else values_SD.float() * weight_S[:, None]
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    return out.copy_(total.index_put_((row_S,), values, accumulate=True))  # sorts; index_add_ would use atomics


def gather_rows(source: Tensor, index_A: Tensor, out: Tensor) -> Tensor:
    """`source[index_A]` in `out`; rows of `source` may be parts of longer ones."""
    if source.is_cuda and has_triton():
        from placement.runtime.kernels import gpu

        return gpu.gather_rows(source, index_A, out)
    if source.dtype == torch.uint8:  # whole rows of the wire: in words, not bytes
        torch.index_select(source.view(torch.int64), 0, index_A, out=out.view(torch.int64))
        return out
    return torch.index_select(source, 0, index_A, out=out)


def _on_cpu(values_SD: Tensor, order_S: Tensor, start: Tensor, weight_S: Tensor | None, out: Tensor) -> Tensor:
    """Bags of rows: torch adds them up in fp32 without a copy. It wants weights of the rows' type.

    A short type holds too little of a weight, so every row is taken twice, with the weight and with what rounding lost.
    """
    if weight_S is not None:
        weight = weight_S[order_S]
        short = weight.to(values_SD.dtype)
        if values_SD.dtype != torch.float32:
            lost = (weight - short.float()).to(values_SD.dtype)
            short = torch.stack([short, lost], dim=1).view(-1)
            order_S, start = order_S.repeat_interleave(2), start * 2
        weight_S = short
    bounds = start.tolist()
    step = max(1, CHUNK_BYTES // max(1, out.shape[1] * out.element_size()))
    for low in range(0, len(out), step):
        high = min(low + step, len(out))
        first, last = bounds[low], bounds[high]
        if first == last:
            out[low:high] = 0
            continue
        out[low:high] = torch.nn.functional.embedding_bag(
            order_S[first:last],
            values_SD,
            start[low : high + 1] - first,
            mode="sum",
            per_sample_weights=None if weight_S is None else weight_S[first:last],
            include_last_offset=True,
        )
    return out
