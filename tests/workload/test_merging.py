"""Merging is addition, and the sample of what is merged is bounded and uniform."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brute_counts import assert_same, shapes
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.stats import chi2

from placement import count, open_trace
from placement.workload.workload import smallest_keys


@settings(max_examples=60)
@given(
    parts=st.lists(shapes(), min_size=3, max_size=3),
    sample_tokens=st.sampled_from([1, 7, 30, 1000]),
    profile_requests=st.sampled_from([1, 4, 1000]),
)
def test_merging_is_addition(
    parts: list[dict[str, Any]], sample_tokens: int, profile_requests: int, write_trace: Any
) -> None:
    """a + b is the count of the concatenation, in all fields exactly; + is associative and commutative."""
    limits = {"seed": 3, "sample_tokens": sample_tokens, "profile_requests": profile_requests}
    with tempfile.TemporaryDirectory() as root:
        folders = []
        for number, shape in enumerate(parts):
            ids = [f"part{number}-{q}" for q in range(shape["requests"])]
            folders.append(write_trace(Path(root, str(number)), **shape, request_ids=ids).folder)
        a, b, c = (count(open_trace(folder), **limits) for folder in folders)
        whole = count(open_trace(folders), **limits)
    assert_same((a + b) + c, whole)
    assert_same(a + (b + c), whole)
    assert_same(b + a, a + b)


@settings(max_examples=30)
@given(shape=shapes(), cut=st.integers(0, 2**32), sample_tokens=st.sampled_from([5, 1000]))
def test_merging_parts_of_a_request(shape: dict[str, Any], cut: int, sample_tokens: int, write_trace: Any) -> None:
    """A request whose tokens are in two traces gets one profile, the sum: as if it had been counted in one go."""
    with tempfile.TemporaryDirectory() as root:
        whole = write_trace(Path(root, "whole"), **shape)
        first = np.random.default_rng(cut).random(shape["tokens"]) < 0.5
        if first.all() or not first.any():
            return
        halves = []
        for name, mine in (("first", first), ("second", ~first)):
            half = write_trace(
                Path(root, name),
                ids_LTK=whole.ids_LTK[:, mine],
                request_T=whole.request_T[mine],
                requests=shape["requests"],
                num_experts=6,
                short=None if shape["short"] is None else 0.0,
            )
            _set_positions(half, whole.position_T[mine])
            halves.append(count(open_trace(half.folder), sample_tokens=sample_tokens))
        together = count(open_trace(whole.folder), sample_tokens=sample_tokens)
    assert_same(halves[0] + halves[1], together)
    assert_same(halves[1] + halves[0], together)


def _set_positions(written: Any, position_T: np.ndarray) -> None:
    from safetensors.numpy import load_file, save_file

    (shard,) = written.shards
    tensors = load_file(shard)
    tensors["position"] = position_T.astype(np.int32)
    save_file(tensors, shard, metadata={"schema": "expert-trace/1"})


def test_masks_add_up(tmp_path: Path, write_trace: Any) -> None:
    """A selection of requests and the rest of them add up to the whole trace."""
    trace = open_trace(write_trace(tmp_path, tokens=200, requests=20, num_shards=3).folder)
    mask = np.random.default_rng(0).random(20) < 0.4
    for sample_tokens in (16, 1000):
        parts = [count(trace.select(part), sample_tokens=sample_tokens) for part in (mask, ~mask)]
        assert_same(parts[0] + parts[1], count(trace, sample_tokens=sample_tokens))


def test_tokens_that_are_alike_do_not_pile_up(
    tmp_path: Path, write_trace: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They have one key, so none is too large for the sample: what waits for it is bounded all the same."""
    ids_LTK = np.tile(np.array([0, 1], dtype=np.uint8), (2, 2000, 1))
    written = write_trace(tmp_path, ids_LTK=ids_LTK, requests=1, num_shards=4)
    for shard in written.shards:
        tensors = load_file(shard)
        tensors["position"][:] = 0
        save_file(tensors, shard, metadata={"schema": "expert-trace/1"})
    whole = count(open_trace(written.folder), sample_tokens=10)
    seen = []

    def watched(key_S: Any, *others: Any) -> Any:
        seen.append(len(key_S))
        return smallest_keys(key_S, *others)

    monkeypatch.setattr("placement.workload.count_segment.smallest_keys", watched)
    monkeypatch.setattr("placement.traces.trace.CHUNK_TOKENS", 50)
    assert_same(count(open_trace(written.folder), sample_tokens=10), whole)
    assert max(seen) <= 2 * 10 + 50


def test_sample_is_bounded(tmp_path: Path, write_trace: Any) -> None:
    """The sample and the profiles hold at most what was asked for, and never a token twice."""
    written = write_trace(
        tmp_path, ids_LTK=np.arange(250).reshape(1, 250, 1), num_experts=250, requests=30, num_shards=3
    )
    trace = open_trace(written.folder)
    for size in (1, 99, 250, 251):
        workload = count(trace, sample_tokens=size, profile_requests=min(size, 12))
        assert len(workload.sample_ids_SLK) == min(size, 250) == len(np.unique(workload.sample_ids_SLK))
        assert len(workload.sample_key_S) == len(workload.sample_owner_S) == min(size, 250)
        assert len(workload.profile_QLE) == min(size, 12) == len(workload.profile_key_Q)


def test_sample_is_uniform(tmp_path: Path, write_trace: Any) -> None:
    """Over many seeds every token is sampled equally often, whatever its shard, request or position; neighbours too."""
    tokens, size, seeds = 200, 20, 600
    # every token has an expert of its own, so that the sample says which tokens it holds
    written = write_trace(
        tmp_path, ids_LTK=np.arange(tokens).reshape(1, tokens, 1), num_experts=tokens, requests=7, num_shards=3
    )
    trace = open_trace(written.folder)
    chosen = np.zeros((seeds, tokens), dtype=bool)
    for seed in range(seeds):
        chosen[seed, count(trace, seed=seed, sample_tokens=size).sample_ids_SLK[:, 0, 0]] = True
    share = size / tokens
    times = chosen.sum(axis=0)
    statistic = ((times - seeds * share) ** 2).sum() / (seeds * share * (1 - share)) * (tokens - 1) / tokens
    low, high = chi2.ppf([0.0005, 0.9995], tokens - 1)
    assert low < statistic < high
    pairs = (chosen[:, 1:] & chosen[:, :-1]).sum()
    expected = seeds * (tokens - 1) * share * (size - 1) / (tokens - 1)
    assert abs(pairs - expected) < 4 * expected**0.5


def test_same_request_ids_in_two_folders(tmp_path: Path, write_trace: Any) -> None:
    """Folders that number their requests alike still merge exactly, in either order."""
    folders = [write_trace(tmp_path / str(seed), tokens=40, requests=4, seed=seed).folder for seed in (0, 1)]
    for size in (15, 1000):
        a, b = (count(open_trace(folder), sample_tokens=size) for folder in folders)
        assert_same(a + b, count(open_trace(folders), sample_tokens=size))
        assert_same(b + a, a + b)
