"""Counts made with loops, and shapes of traces to make them of."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from placement import Workload

ARRAYS = (
    "load_LE",
    "coact_LEE",
    "sample_key_S",
    "sample_owner_S",
    "sample_ids_SLK",
    "profile_key_Q",
    "profile_QLE",
)


def assert_same(a: Workload, b: Workload) -> None:
    """Equal in every field, byte for byte."""
    for name in ("num_tokens", "seed", "sample_tokens", "profile_requests"):
        assert getattr(a, name) == getattr(b, name), name
    for name in ARRAYS:
        left, right = getattr(a, name), getattr(b, name)
        assert left.dtype == right.dtype, name
        np.testing.assert_array_equal(left, right, err_msg=name)


def brute_counts(ids_LTK: np.ndarray, num_experts: int) -> tuple[np.ndarray, np.ndarray]:
    """Load and co-activation by walking through the tokens."""
    num_layers = len(ids_LTK)
    load = np.zeros((num_layers, num_experts), dtype=np.int64)
    coact = np.zeros((num_layers, num_experts, num_experts), dtype=np.int64)
    for layer in range(num_layers):
        for row in ids_LTK[layer]:
            visits = np.zeros(num_experts, dtype=np.int64)
            visits[row[row >= 0]] = 1
            load[layer] += visits
            coact[layer] += np.outer(visits, visits)
        np.fill_diagonal(coact[layer], 0)
    return load, coact


@st.composite
def shapes(draw: st.DrawFn) -> dict[str, Any]:
    """Keyword arguments of `write_trace` for traces of one model and of any size."""
    return {
        "tokens": draw(st.integers(1, 40)),
        "requests": draw(st.integers(1, 8)),
        "num_shards": draw(st.integers(1, 3)),
        "seed": draw(st.integers(0, 2**32)),
        "num_layers": 2,
        "num_experts": 6,
        "top_k": 3,
        "short": draw(st.sampled_from([None, 0.0, 0.02, 0.3, 0.9])),
    }


def save_signed(written: Any, ids_LTK: np.ndarray) -> None:
    """Put these very ids into the only shard."""
    tensors = load_file(written.shards[0])
    save_file({**tensors, "expert_ids": ids_LTK.astype(np.int16)}, written.shards[0], {"schema": "expert-trace/1"})
