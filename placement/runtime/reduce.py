"""Sums of rows by destination, in fp32 and in a fixed order: the same bits every time, on every device."""

from __future__ import annotations

import torch
from torch import Tensor


def sum_rows(values_SD: Tensor, row_S: Tensor, num_rows: int, weight_S: Tensor | None = None) -> Tensor:
    """`out[r]` is the sum of `weight_S[s] * values_SD[s]` over all `s` with `row_S[s] == r`, typed as the values."""
    total = torch.zeros((num_rows, values_SD.shape[1]), dtype=torch.float32, device=values_SD.device)
    values = values_SD.float()
    if weight_S is not None:
        values = values * weight_S[:, None]
    if total.is_cuda:  # index_add_ uses atomics there; this one sorts
        total.index_put_((row_S,), values, accumulate=True)
    else:
        total.index_add_(0, row_S, values)
    return total.to(values_SD.dtype)
