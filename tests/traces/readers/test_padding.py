"""Rows that are no traffic are left out; traffic that looks like them stays."""

from __future__ import annotations

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from padded_recordings import as_sets, converted, notes, routed, sets_of

from placement.errors import TraceError
from placement.readers.convert import convert

FILLS = {
    "zeros of one expert a token": (
        1,
        lambda rng, k: np.zeros(k, dtype=int),
        "unused rows (expert 0 in all MoE layers)",
    ),
    "arange": (4, lambda rng, k: np.arange(k), "padding rows ([0, 1, 2, 3] in all MoE layers)"),
    "arange of two": (2, lambda rng, k: np.arange(k), "padding rows ([0, 1] in all MoE layers)"),
    "a constant": (4, lambda rng, k: np.full(k, 15), "warm-up tokens or padding ([15, 15, 15, 15] in all MoE layers)"),
    "one set": (4, lambda rng, k: rng.permutation(16)[:k], "in all MoE layers)"),
    "the last expert": (1, lambda rng, k: np.full(k, 15), "warm-up tokens or padding ([15] in all MoE layers)"),
}


@pytest.mark.parametrize("fill", FILLS)
@settings(max_examples=8, deadline=None)
@given(
    seed=st.integers(0, 99),
    layers=st.integers(4, 12),
    lengths=st.lists(st.integers(0, 20), min_size=2, max_size=4),
    place=st.sampled_from(["first", "last", "both"]),
)
def test_rows_alike_in_all_layers_are_left_out(
    fill: str, seed: int, layers: int, lengths: list[int], place: str, tmp_path_factory: Any
) -> None:
    """However many there are in a request, and wherever: exactly they go, and the files are named."""
    folder = tmp_path_factory.mktemp("fill")
    top_k, make, what = FILLS[fill]
    row = np.broadcast_to(make(np.random.default_rng(seed), top_k), (layers, top_k))
    lengths[0] += 4
    requests, kept = {}, []
    for number, length in enumerate(lengths):
        ids = routed(seed + number, 30, layers, top_k=top_k)
        padding = np.broadcast_to(row, (length, layers, top_k))
        before = length if place == "first" else length // 2 if place == "both" else 0
        requests[f"r{number}"] = np.concatenate([padding[:before], ids, padding[before:]])
        kept += as_sets(ids)
    done = converted(folder, requests)
    assert sets_of(folder) == kept
    assert f"{sum(lengths)} " in notes(done) and what in notes(done)


def test_first_rows_that_a_replica_did_not_compute(tmp_path: Path) -> None:
    """Prompts of a decode replica: their rows are left out, and the note says whose they are."""
    requests = {f"r{number}": routed(number, 40, 4) for number in range(5)}
    for number, ids in enumerate(requests.values()):
        ids[: 8 * number] = 0 if number % 2 else -1
    requests["r4"][35] = -1
    done = converted(tmp_path, requests)
    assert done.num_tokens == 200 - 80 - 1
    assert "left out: 81 unused rows, in r1.npy and 3 other files" in notes(done)
    assert "80 unused rows are the first of 4 of 5 requests" in notes(done)


def test_dummies_of_graphs_are_left_out(tmp_path: Path) -> None:
    """A row repeated behind each step's tokens, other experts in each layer: dummies that fill a CUDA graph."""
    rng = np.random.default_rng(0)
    dummy = routed(99, 1, 6)
    steps = [
        np.concatenate([routed(number, 8, 6), np.repeat(dummy, rng.integers(0, 5), axis=0)]) for number in range(20)
    ]
    done = converted(tmp_path, {"steps": np.concatenate(steps)})
    assert sets_of(tmp_path) == as_sets(np.concatenate([step[:8] for step in steps]))
    assert "warm-up tokens or other dummies" in notes(done)


def test_last_rows_that_fill_a_buffer_are_left_out(tmp_path: Path) -> None:
    """Each request's last row repeated to the end of its buffer: the row itself is a token."""
    requests = {f"r{number}": routed(number, 40, 6) for number in range(4)}
    for ids in requests.values():
        ids[20:] = ids[19]
    done = converted(tmp_path, requests)
    assert sets_of(tmp_path) == [token for ids in requests.values() for token in as_sets(ids[:20])]
    assert "80 warm-up tokens or other dummies" in notes(done)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999), top_k=st.integers(1, 4), experts=st.integers(4, 20), layers=st.integers(1, 6))
def test_traffic_stays(seed: int, top_k: int, experts: int, layers: int, tmp_path_factory: Any) -> None:
    """Whatever the model: no token of random routing, however uneven, is taken for padding. Where a model has fewer
    sets than a trace has tokens, chance makes rows alike: such tiny models are left to the counted notes."""
    assume(comb(experts, top_k) ** layers > 100)
    folder = tmp_path_factory.mktemp("traffic")
    requests = {f"r{number}": routed(seed, 40, layers, experts=experts, top_k=top_k) for number in range(3)}
    requests["other"] = routed(seed + 7, 60, layers, experts=experts, top_k=top_k)
    done = converted(folder, requests, num_experts=experts)
    if done.model.num_layers == layers:  # a layer of nothing but expert 0 is taken for a dense one
        assert sets_of(folder) == [token for ids in requests.values() for token in as_sets(ids)]
        assert "rows" not in notes(done)


def test_prompts_that_begin_alike_stay(tmp_path: Path) -> None:
    """A hundred requests with the same system prompt, one after another, and one token more each."""
    prompt = routed(0, 1, 24)
    requests = {f"r{number}": np.concatenate([prompt, routed(number, 1, 24)]) for number in range(100)}
    assert converted(tmp_path, requests).num_tokens == 200


def test_requests_of_one_token_that_are_alike_stay(tmp_path: Path) -> None:
    """One file of all requests, each with the same first token: rows of other requests are no repeats."""
    row = np.repeat(routed(0, 1, 24), 40, axis=0)
    np.savez(tmp_path / "x.npz", expert_ids=row, request=np.arange(40), num_experts=16)
    assert convert(tmp_path / "x.npz", tmp_path / "out").num_tokens == 40


def test_one_moe_layer_cannot_tell(tmp_path: Path) -> None:
    """Of one layer and one expert a token, expert 0 is an expert as good as any; that it has so much is said."""
    ids = np.random.default_rng(0).integers(0, 16, (300, 1, 1))
    ids[:200] = 0
    done = converted(tmp_path, {"a": ids})
    assert done.num_tokens == 300
    assert "of the tokens of the only MoE layer: whether nobody wrote some of their rows cannot be told" in notes(done)


@pytest.mark.parametrize("top_k", [1, 4])
def test_unwritten_rows_are_kept_where_someone_knows_better(top_k: int, tmp_path: Path) -> None:
    """--keep-unwritten takes them for tokens; rows without a set are none all the same."""
    ids = routed(1, 60, 6, top_k=top_k)
    ids[:20] = np.arange(top_k)
    ids[20] = -1
    done = converted(tmp_path, {"a": ids}, keep_unwritten=True)
    assert sets_of(tmp_path) == as_sets(np.delete(ids, 20, axis=0)) and "1 unused rows" in notes(done)


def test_a_recording_of_padding_alone_is_refused(tmp_path: Path) -> None:
    ids = np.broadcast_to(np.arange(4), (30, 3, 4))
    with pytest.raises(TraceError, match="no token has any expert; left out: padding rows"):
        converted(tmp_path, {"a": ids})
    np.save(tmp_path / "zero.npy", np.zeros((30, 8, 1), dtype=np.int32))
    with pytest.raises(TraceError, match="no token has any expert"):
        convert(tmp_path / "zero.npy", tmp_path / "zero")
