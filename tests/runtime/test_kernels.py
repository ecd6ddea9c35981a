"""The Triton kernels are torch's gather, sum and replica choice; without a GPU in Triton's interpreter."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe import make_placement, torch

from placement.cost.choices import REPLICA_CHOICES
from placement.runtime.choice_on_device import DeviceChooser
from placement.runtime.layer_map import LayerMap
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
        column = torch.stack([index, 8 - index], dim=1)[:, 0]  # as `nonzero_static` gives rows
        assert torch.equal(gpu.gather_rows(part, column), part[index])


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


@settings(max_examples=30, deadline=None)
@given(
    shape=st.sampled_from([(1, 2, 6), (2, 2, 4), (3, 1, 6), (4, 2, 2), (8, 1, 3), (6, 2, 2)]),
    choice=st.sampled_from(["min-nodes", "local-first", "uniform"]),
    seed=st.integers(0, 10_000),
    wasted=st.booleans(),
)
def test_replicas_are_chosen(shape: tuple[int, int, int], choice: str, seed: int, wasted: bool) -> None:
    """As torch chooses them, which `test_choice_on_device.py` holds to the cost model: covers of two and more nodes,
    missing ids, experts twice on a rank, no token at all."""
    experts, top_k = 11, 5
    layer_map = LayerMap.of(make_placement(*shape, experts, top_k, seed=seed, wasted=wasted), 0)
    rng, rule = np.random.default_rng(seed), REPLICA_CHOICES.make(choice)
    rank = int(rng.integers(layer_map.num_ranks))
    chooser = DeviceChooser(layer_map, rank, rule, layer_map.cluster(), torch.device(DEVICE))
    ids = torch.from_numpy(np.argsort(rng.random((24, experts)), axis=1)[:, :top_k])
    ids[rng.random((24, top_k)) < 0.1] = -1
    for part in ids.to(DEVICE).split([14, 0, 10]):
        assert torch.equal(chooser.by_kernel(part), chooser.in_torch(part))
        chooser.seen += len(part)
