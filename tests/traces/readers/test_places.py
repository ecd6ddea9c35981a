"""Places of a set without an expert, or with one that computes nothing or is shared, are no load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from padded_recordings import as_sets, converted, notes, routed, sets_of

from placement.errors import OptionError, TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import convert
from placement.traces.trace import open_trace


@settings(max_examples=25)
@given(seed=st.integers(0, 999), share=st.sampled_from([0.0, 0.01, 0.2, 0.7]), weights=st.booleans())
def test_places_without_an_expert_cost_no_token(seed: int, share: float, weights: bool, tmp_path_factory: Any) -> None:
    """Wherever -1 stands in a set, every other expert of the token is kept, with its router weight, and no other is."""
    folder = tmp_path_factory.mktemp("short")
    rng = np.random.default_rng(seed)
    ids = routed(seed, 30, 3)
    ids[rng.random(ids.shape) < share] = -1
    ids[0] = [1, 2, 3, 4], [4, 1, 2, 3], [1, 4, 3, 2]
    arrays = {"expert_ids": ids, "num_experts": 16}
    if weights:
        arrays["expert_weights"] = ids.astype(np.float16) / 16
    np.savez(folder / "x.npz", **arrays)
    done = convert(folder / "x.npz", folder / "out")
    kept = ids[(ids >= 0).any(axis=(1, 2))]
    assert sets_of(folder) == as_sets(kept)
    missing = int((kept < 0).sum())
    assert (f"({missing:,} places, {missing / kept.size:.2%})" in notes(done)) == (missing > 0)
    assert (f"{len(ids) - len(kept)} unused rows" in notes(done)) == (len(kept) < len(ids))
    if weights:
        (block,) = open_trace(folder / "out").blocks()
        for layer in range(3):
            there = block.ids_TK(layer).astype(int) >= 0
            expected = np.where(there, block.ids_TK(layer).astype(np.float16) / 16, 0)
            assert np.array_equal(block.weights_TK(layer), expected)


@pytest.mark.parametrize("fill", [-1, 0])
@pytest.mark.parametrize("tops", [(4, 2, 3, 4), (1, 4, 4), (2, 2, 3), (3, 3, 3)])
def test_top_k_that_differs_by_layer(fill: int, tops: tuple[int, ...], tmp_path: Path) -> None:
    """Layers that fill fewer places than the buffer has, with -1 or 0: the sets are as wide as those of the layer."""
    ids = routed(3, 120, len(tops))
    for layer, top in enumerate(tops):
        ids[:, layer, top:] = fill
    done = converted(tmp_path, {"a": ids[:60], "b": ids[60:]}, np.uint8 if fill == 0 else np.int32)
    expected = [[set(ids[t, layer, :top].tolist()) for layer, top in enumerate(tops)] for t in range(120)]
    assert sets_of(tmp_path) == expected
    assert done.model.top_k == max(tops)
    if len(set(tops)) > 1:
        assert f"layers have top-k {', '.join(map(str, tops))}" in notes(done)
    assert ("every set of a layer has 0" in notes(done)) == (fill == 0)
    assert "fewer than" not in notes(done)


def test_many_layers_are_told_by_their_top_k(tmp_path: Path) -> None:
    ids = routed(3, 60, 20)
    ids[:, 5:9, 2:] = -1
    done = converted(tmp_path, {"a": ids})
    assert "layers have top-k 4 (0 to 4, 9 to 19), 2 (5 to 8)" in notes(done)


def test_zeros_behind_dropped_places_are_no_load(tmp_path: Path) -> None:
    """Buffers of zeros where places were dropped: a set that ends with several tells it, so no 0 at an end counts."""
    ids = routed(5, 200, 3) + 1
    dropped = np.random.default_rng(0).integers(0, 3, (200, 3))
    for number in range(3):
        ids[dropped == number + 1, 4 - number - 1 :] = 0
    done = converted(tmp_path, {"a": ids}, num_experts=17)
    assert 0 not in set().union(*(one for token in sets_of(tmp_path) for one in token))
    assert "0s at the end of sets left out" in notes(done)


def test_an_expert_0_that_is_often_last_stays(tmp_path: Path) -> None:
    """Ids in descending order put expert 0 last; it is not there in every set."""
    ids = -np.sort(-routed(5, 200, 3, experts=8), axis=2)
    done = converted(tmp_path, {"a": ids})
    assert sets_of(tmp_path) == as_sets(ids) and "left out" not in notes(done)


@pytest.mark.parametrize("rows", [1, 3])
def test_few_tokens_tell_nothing_of_places(rows: int, tmp_path: Path) -> None:
    """So few sets may well all end with expert 0."""
    ids = np.argsort(-np.random.default_rng(0).random((rows, 2, 15)), axis=2)[..., :4] + 1
    ids[..., 3] = 0
    converted(tmp_path, {"a": ids})
    assert sets_of(tmp_path) == as_sets(ids)


def test_a_token_that_visits_nothing_is_none(tmp_path: Path) -> None:
    """All its experts compute nothing: it sends no copy, and the format has no such token."""
    ids = routed(1, 60, 2, experts=20, top_k=2)
    ids[7] = [[16, 17], [19, 18]]
    done = converted(tmp_path, {"a": ids}, num_experts=16)
    kept = np.where(ids < 16, ids, -1)
    assert sets_of(tmp_path) == as_sets(kept[(kept >= 0).any(axis=(1, 2))])
    assert "tokens without any expert, in a.npy" in notes(done)


@pytest.mark.parametrize(("experts", "more"), [(16, 8), (12, 4), (24, 12)])
def test_experts_that_compute_nothing(experts: int, more: int, tmp_path: Path) -> None:
    """Ids from the told number of experts on have no weights: they are left out of the sets, and counted."""
    ids = routed(2, 120, 3, experts=experts + more, top_k=6)
    done = converted(tmp_path, {"a": ids}, num_experts=experts)
    assert sets_of(tmp_path) == as_sets(np.where(ids < experts, ids, -1))
    assert done.model.num_experts == experts
    beyond = int((ids >= experts).sum())
    last = experts + more - 1
    assert f"ids {experts} to {last} left out of the sets ({beyond:,} places, {beyond / ids.size:.2%})" in notes(done)


def test_a_damaged_id_is_no_such_expert(tmp_path: Path) -> None:
    """One id out of range, in one layer: refused as ever."""
    ids = routed(2, 60, 3)
    ids[4, 1, 2] = 17
    with pytest.raises(TraceError, match=r"layer 1, token 4 has expert ids .* 0 to 15 are allowed"):
        converted(tmp_path, {"a": ids}, num_experts=16)


@pytest.mark.parametrize("fused", [1, 2])
def test_a_fused_shared_expert(fused: int, tmp_path: Path) -> None:
    """Told --experts, the shared expert is left out and named; otherwise the option that leaves it out is told."""
    ids = routed(2, 120, 3)
    shared = np.broadcast_to(np.arange(16, 16 + fused), (120, 3, fused))
    done = converted(tmp_path, {"a": np.concatenate([ids, shared], axis=2)}, num_experts=16)
    assert sets_of(tmp_path) == as_sets(ids) and done.model.top_k == 4
    assert "last in every set of all layers, a shared expert fused as one more" in notes(done)


def test_a_fused_shared_expert_is_suspected(tmp_path: Path) -> None:
    ids = np.concatenate([routed(2, 120, 3), np.full((120, 3, 1), 16)], axis=2)
    done = converted(tmp_path, {"a": ids})
    assert "expert 16 is the last of every set in all layers" in notes(done) and "--experts 16" in notes(done)


def test_experts_that_are_told_otherwise_are_refused(tmp_path: Path) -> None:
    """A number that cuts ordinary experts off is no way to leave experts out."""
    np.savez(tmp_path / "x.npz", expert_ids=routed(2, 60, 3), num_experts=16)
    for told in (7, 17):
        with pytest.raises(OptionError, match=f"--experts {told} is not what the recording says, 16"):
            convert(tmp_path / "x.npz", tmp_path / "out", options=ReadOptions(num_experts=told))
