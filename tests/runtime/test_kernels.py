"""The Triton kernels are torch's gather and sum; without a GPU in Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import pytest
from moe import torch

from placement.runtime.reduce import sum_rows

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
if DEVICE == "cpu":
    os.environ["TRITON_INTERPRET"] = "1"  # read when triton is imported
pytest.importorskip("triton", reason="the package triton is not installed")
gpu: Any = pytest.importorskip("placement.runtime.kernels.gpu")

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@TYPES
@pytest.mark.parametrize("columns", [16, 1040, 1023])
def test_rows_are_gathered(dtype: torch.dtype, columns: int) -> None:
    """Whole rows and parts of longer ones, odd sizes, none at all."""
    whole = torch.randn(9, columns + 8).to(DEVICE, dtype)
    index = torch.tensor([3, 3, 0, 8, 5], device=DEVICE)
    for part in (whole, whole[:, 8:], whole[:, 1:]):
        assert torch.equal(gpu.gather_rows(part, index), part[index])
        assert gpu.gather_rows(part, index[:0]).shape == (0, part.shape[1])


def test_bytes_are_gathered() -> None:
    """Rows of the wire."""
    rows = torch.randint(0, 256, (7, 4112), dtype=torch.uint8, device=DEVICE)
    index = torch.tensor([6, 0, 0, 2], device=DEVICE)
    assert torch.equal(gpu.gather_rows(rows, index), rows[index])


@TYPES
@pytest.mark.parametrize("weighted", [True, False])
def test_rows_are_summed(dtype: torch.dtype, weighted: bool) -> None:
    """As a sum in float64, rounded once; rows without entries are zero; and as torch's sum on a CPU."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, 1030, generator=generator).to(dtype)
    row = torch.randint(0, 12, (50,), generator=generator)
    row[row == 4] = 5
    weight = torch.rand(50, generator=generator) if weighted else None
    order = torch.argsort(row, stable=True)
    start = torch.searchsorted(row[order], torch.arange(13))
    on = lambda tensor: None if tensor is None else tensor.to(DEVICE)  # noqa: E731
    out = torch.empty((12, 1030), dtype=dtype, device=DEVICE)
    gpu.sum_rows(on(values), on(order), on(start), on(weight), out)
    factor = torch.ones(50) if weight is None else weight
    want = torch.zeros(12, 1030, dtype=torch.float64).index_add_(0, row, values.double() * factor[:, None].double())
    bound = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    torch.testing.assert_close(out.cpu().double(), want, rtol=bound / 2, atol=bound)
    assert not out[4].any()
    in_torch = sum_rows(values, row, 12, weight)
    torch.testing.assert_close(out.cpu(), in_torch, rtol=bound / 2, atol=bound)
    again = torch.empty_like(out)
    assert torch.equal(gpu.sum_rows(on(values), on(order), on(start), on(weight), again), out)
