"""Rows gathered, ordered, and summed by destination: in fp32 and in a fixed order, the same bits every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from placement.runtime.kernels import cpu, cpu_sums, has_triton

NO_WEIGHTS = np.empty(0, dtype=np.float32)


def order_rows(row_S: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Entries in the order of their rows, and where each row's entries start, int64 [num_rows + 1].

    Entries of rows from `num_rows` on belong to nobody; if there are any, they are beyond `start[-1]` or left out.
    """
    if not row_S.is_cuda:
        order_S, start = cpu.order_rows(row_S.numpy(), num_rows)
        return torch.from_numpy(order_S), torch.from_numpy(start)
    sorted_S, order = torch.sort(row_S, stable=True)
    return order, torch.searchsorted(sorted_S, torch.arange(num_rows + 1, device=row_S.device))


def order_visits(local_RK: Tensor, weight_RK: Tensor, num_slots: int, most: int) -> tuple[Tensor, Tensor, Tensor]:
    """Visits of rows to slots in the order of slots: visits of each slot [num_slots], row [A] and weight [A] of each.

    Slot `num_slots` is that of those that make no visit; `most` are how many do, which the host knows.
    """
    if not local_RK.is_cuda:
        found = cpu.order_visits(local_RK.numpy(), weight_RK.float().numpy(), num_slots)
        counts, row_A, weight_A = (torch.from_numpy(one) for one in found)
        return counts, row_A, weight_A
    order, start = order_rows(local_RK.reshape(-1), num_slots)
    order = order[:most]
    return start.diff(), order // local_RK.shape[1], weight_RK.reshape(-1)[order]


def sum_rows(
    values_SD: Tensor, row_S: Tensor, num_rows: int, weight_S: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """`out[r]` is the sum of `weight_S[s] * values_SD[s]` over all `s` with `row_S[s] == r`, typed as the values."""
    if out is None:
        out = values_SD.new_empty((num_rows, values_SD.shape[1]))
    if values_SD.dtype == torch.float16 and not values_SD.is_cuda:
        return out.copy_(sum_rows(values_SD.float(), row_S, num_rows, weight_S))
    order_S, start = order_rows(row_S, num_rows)
    if not values_SD.is_cuda:
        weights = NO_WEIGHTS if weight_S is None else weight_S.numpy()
        cpu_sums.sum_rows(_numbers(values_SD), order_S.numpy(), start.numpy(), weights, _numbers(out))
        return out
    if has_triton():
        from placement.runtime.kernels import gpu

        return gpu.sum_rows(values_SD, order_S, start, weight_S, out)
    values = values_SD.float() if weight_S is None else values_SD.float() * weight_S[:, None]
    total = torch.zeros((num_rows + 1, out.shape[1]), dtype=torch.float32, device=out.device)  # the last is nobody's
    total.index_put_((row_S.clamp(max=num_rows),), values, accumulate=True)  # sorts; index_add_ would use atomics
    return out.copy_(total[:num_rows])


def gather_rows(source: Tensor, index_A: Tensor, out: Tensor) -> Tensor:
    """`source[index_A]` in `out`; rows of `source` may be parts of longer ones."""
    if source.is_cuda and has_triton():
        from placement.runtime.kernels import gpu

        return gpu.gather_rows(source, index_A, out)
    if source.dtype == torch.uint8:  # whole rows of the wire: in words, not bytes
        torch.index_select(source.view(torch.int64), 0, index_A, out=out.view(torch.int64))
        return out
    return torch.index_select(source, 0, index_A, out=out)


def _numbers(rows: Tensor) -> npt.NDArray[Any]:
    """Rows on a CPU as numpy has them: bfloat16, which it has not, as its bits."""
    rows = rows.detach()
    return rows.view(torch.int16).numpy().view(np.uint16) if rows.dtype == torch.bfloat16 else rows.numpy()
