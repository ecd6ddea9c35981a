"""What runs on a CPU in numba: rows ordered, packed, chosen by destination, summed and checked, beside plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moe import torch

from placement.runtime.kernels import cpu
from placement.runtime.reduce import order_rows, order_visits, sum_rows
from placement.runtime.wire import Wire

TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


@settings(max_examples=50, deadline=None)
@given(rows=st.lists(st.integers(0, 6), max_size=30))
def test_rows_are_ordered(rows: list[int]) -> None:
    """Stably, by row; entries of row 5 and up belong to nobody."""
    order, start = order_rows(torch.tensor(rows, dtype=torch.int64), 5)
    want = sorted((s for s in range(len(rows)) if rows[s] < 5), key=rows.__getitem__)
    assert order[: start[-1]].tolist() == want
    assert start.diff().tolist() == [rows.count(row) for row in range(5)]


@settings(max_examples=50, deadline=None)
@given(slots=st.lists(st.lists(st.integers(-1, 7), min_size=3, max_size=3), max_size=12), last=st.integers(-1, 2))
def test_a_row_goes_once_to_each_member(slots: list[list[int]], last: int) -> None:
    """By member, one of them last, then by row; slots 6 and 7 and -1 are nobody's."""
    slot_RK = np.array(slots, dtype=np.int64).reshape(-1, 3)
    member_P = np.array([0, 0, 1, 1, 2, 2, 3, 9, 3])
    rows_X, assignments_X, row_S = cpu.distinct_members(slot_RK, member_P, 3, last)
    to = [[member_P[slot] for slot in row] for row in slots]
    order = sorted(range(3), key=lambda member: (member == last, member))
    assert row_S.tolist() == [r for member in order for r in range(len(to)) if member in to[r]]
    assert rows_X.tolist() == [sum(member in row for row in to) for member in range(3)]
    assert assignments_X.tolist() == [sum(row.count(member) for row in to) for member in range(3)]


@settings(max_examples=50, deadline=None)
@given(slots=st.lists(st.lists(st.integers(0, 3), min_size=2, max_size=2), max_size=12))
def test_visits_are_in_the_order_of_slots(slots: list[list[int]]) -> None:
    """Then of rows; slot 3 is no visit. A row has its weight for each of its visits."""
    local = torch.tensor(slots, dtype=torch.int64).reshape(-1, 2)
    weight = torch.arange(local.numel() + 1, dtype=torch.float32)[1:].view(-1, 2)
    counts, row_A, weight_A = order_visits(local, weight, 3, sum(slot < 3 for row in slots for slot in row))
    want = [(r, k) for slot in range(3) for r in range(len(slots)) for k in range(2) if slots[r][k] == slot]
    assert row_A.tolist() == [r for r, _ in want]
    assert weight_A.tolist() == [float(weight[r, k]) for r, k in want]
    assert counts.tolist() == [sum(row.count(slot) for row in slots) for slot in range(3)]


@TYPES
@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("columns", [1, 33, 130])
def test_rows_are_summed(dtype: torch.dtype, weighted: bool, columns: int) -> None:
    """In fp32, rounded once as torch rounds; rows without entries are 0; entries of nobody count nowhere."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(50, columns, generator=generator).to(dtype)
    row = torch.randint(0, 13, (50,), generator=generator)
    row[row == 4] = 5
    weight = torch.rand(50, generator=generator) if weighted else None
    want = torch.zeros(12, columns)
    for s in range(50):
        if row[s] < 12:
            want[row[s]] += values[s].float() * (1.0 if weight is None else weight[s])
    assert torch.equal(sum_rows(values, row, 12, weight), want.to(dtype))
    assert not sum_rows(values, row, 12, weight)[4].any()


def test_bfloat16_is_rounded_as_torch_does() -> None:
    """Every kind of number: ties to even both ways, the largest, denormals, infinities and no numbers."""
    bits = [
        0x3F808000,
        0x3F818000,
        0x3F808001,
        0x7F7FFFFF,
        0x7F800000,
        -0x800000,
        0x7FC00000,
        0x7FFFFFFF,
        -1,
        1,
        0x8000,
    ]
    halves = torch.tensor(bits, dtype=torch.int64).to(torch.int32).view(torch.float32)
    high = halves.to(torch.bfloat16)  # rounded once
    rest = torch.where(torch.isfinite(halves), halves - high.float(), 0.0)
    values = torch.stack([high, rest.to(torch.bfloat16)])
    got = sum_rows(values, torch.tensor([0, 0]), 1)[0]
    want = (0.0 + values[0].float() + values[1].float()).to(torch.bfloat16)
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got[~got.isnan()].view(torch.int16), want[~want.isnan()].view(torch.int16))
    one = sum_rows(torch.ones(1, 1, dtype=torch.bfloat16), torch.tensor([0]), 1, torch.tensor([float(halves[0])]))
    assert float(one) == float(halves[0].to(torch.bfloat16)) == 1.0


@TYPES
@pytest.mark.parametrize("hidden", [16, 31])
@pytest.mark.parametrize("width", [1, 3])
def test_packed_rows_are_encoded_rows(dtype: torch.dtype, hidden: int, width: int) -> None:
    """What `encode` and a gather give, up to the bytes that fill a row; x may be part of a larger tensor."""
    wire = Wire(hidden=hidden, dtype=dtype, width=width)
    x = torch.randn(6, hidden + 5).to(dtype)[1:, 3 : 3 + hidden]
    slots, weights = torch.randint(-1, 9, (5, width)), torch.rand(5, width)
    row_S = torch.tensor([4, 0, 0, 2])
    out = wire.writer(x, slots, weights)(row_S, torch.zeros(4, wire.row_bytes, dtype=torch.uint8))
    encoded = wire.encode(x, slots, weights, torch.zeros(5, wire.row_bytes, dtype=torch.uint8))
    assert torch.equal(out, encoded[row_S])


@settings(max_examples=50, deadline=None)
@given(
    given=st.lists(
        st.tuples(st.sampled_from([-(1 << 40), -2, -1, 0, 3, 4, 1 << 40]), st.sampled_from([0.5, math.nan, math.inf])),
        max_size=8,
    )
)
def test_choices_are_checked(given: list[tuple[int, float]]) -> None:
    """Ids from -1 to 3 exist; a weight counts unless its id is -1 or less."""
    ids = np.array([[e] for e, _ in given], dtype=np.int64).reshape(-1, 1)
    weights = np.array([[w] for _, w in given], dtype=np.float32).reshape(-1, 1)
    checked, wrong, bad = cpu.check_choices(ids, weights, 4)
    assert checked.ravel().tolist() == [e if 0 <= e < 4 else -1 for e, _ in given]
    assert wrong == any(e < -1 or e >= 4 for e, _ in given)
    assert bad == any(e >= 0 and not math.isfinite(w) for e, w in given)
