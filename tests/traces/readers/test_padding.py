"""What is no traffic is left out and said; what only looks alike stays."""

from __future__ import annotations

from math import comb
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from placement.errors import OptionError, TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import Conversion, convert
from placement.traces.trace import open_trace
from placement.workload.count import count

Array = npt.NDArray[Any]


def routed(seed: int, *shape: int, experts: int = 16, top_k: int = 4) -> Array:
    """Random top-k sets [tokens, layers, K], some experts far more popular than others."""
    rng = np.random.default_rng(seed)
    popularity = np.random.default_rng(seed + 1).normal(0, 1, (shape[1], experts))
    return np.argsort(-(popularity + rng.gumbel(size=(*shape, experts))), axis=-1)[..., :top_k]


def converted(folder: Path, requests: dict[str, Array], dtype: Any = np.int32, **options: Any) -> Conversion:
    """Convert one `.npy` for each request [T, L, K]."""
    source = folder / "in"
    source.mkdir()
    for name, ids in requests.items():
        np.save(source / f"{name}.npy", ids.astype(dtype))
    return convert(source, folder / "out", reader="arrays", options=ReadOptions(**options))


def sets_of(folder: Path) -> list[list[set[int]]]:
    """The sets of every token by layer, in order."""
    trace = open_trace(folder / "out")
    count(trace)  # its ids are sound
    layers = range(trace.model.num_layers)
    tokens = [np.stack([block.ids_TK(layer) for layer in layers], axis=1) for block in trace.blocks()]
    return [[set(row[row >= 0].tolist()) for row in one] for one in np.concatenate(tokens).astype(int)]


def as_sets(ids: Array) -> list[list[set[int]]]:
    return [[set(row[row >= 0].tolist()) for row in one] for one in ids.astype(int)]


def notes(done: Conversion) -> str:
    return "; ".join(done.notes)


# short sets


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


# experts that are none


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


# rows that are no traffic

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
