"""The statistics of a trace are exact where they say so, uniform where they sample, and merge like addition."""

from __future__ import annotations

import dataclasses
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from scipy.stats import chi2

from placement import InputError, PlacementError, Workload, count, open_trace
from placement.errors import TraceError
from placement.workload.workload import smallest_keys

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


@settings(max_examples=60)
@given(shape=shapes(), select=st.booleans(), seed=st.integers(0, 2**63 - 1))
def test_counts_equal_brute_force(shape: dict[str, Any], select: bool, seed: int, write_trace: Any) -> None:
    """Load, co-activation and request profiles are exact, of the selected requests and of no others."""
    with tempfile.TemporaryDirectory() as folder:
        written = write_trace(folder, **shape)
        trace = open_trace(folder)
        wanted = np.ones(shape["requests"], dtype=bool)
        if select:
            wanted = np.random.default_rng(shape["seed"]).random(shape["requests"]) < 0.5
            wanted[written.request_T[0]] = True
            trace = trace.select(wanted)
        workload = count(trace, seed=seed)
    kept = wanted[written.request_T]
    load, coact = brute_counts(written.ids_LTK[:, kept], 6)
    assert workload.num_tokens == kept.sum()
    np.testing.assert_array_equal(workload.load_LE, load)
    np.testing.assert_array_equal(workload.coact_LEE, coact)
    # profiles: one row a request that has kept tokens; matched as sorted rows, since keys are opaque
    rows = [
        brute_counts(written.ids_LTK[:, written.request_T == q], 6)[0]
        for q in range(shape["requests"])
        if wanted[q] and (written.request_T == q).any()
    ]
    assert sorted(workload.profile_QLE.tolist()) == sorted(row.tolist() for row in rows)
    # the sample is all tokens here, each with its sets of all layers together
    tokens = written.ids_LTK[:, kept].transpose(1, 0, 2)
    assert sorted(workload.sample_ids_SLK.tolist()) == sorted(tokens.tolist())
    assert workload.sample_ids_SLK.dtype == (np.int16 if (tokens < 0).any() else np.uint8)


def test_types_of_shards_change_nothing(tmp_path: Path, write_trace: Any) -> None:
    """Full sets count the same whether their shards could hold short ones or not, together with short ones or alone."""
    for experts in (6, 300, 40_000):
        shape = {"num_experts": experts, "num_layers": 1, "tokens": 30, "seed": 5}
        unsigned, signed = (write_trace(tmp_path / f"{experts}-{s}", **shape, short=s).folder for s in (None, 0.0))
        short = write_trace(tmp_path / f"{experts}-short", **{**shape, "seed": 6}, short=0.3).folder
        if experts < 1000:  # counting so many experts takes gigabytes
            assert_same(count(open_trace(unsigned)), count(open_trace(signed)))
            mixed = [count(open_trace(folders)) for folders in ([unsigned, short], [short, signed])]
            assert_same(mixed[0], mixed[1])
            assert mixed[0].num_tokens == 60
        np.testing.assert_array_equal(
            *(open_trace(folder).shards[0].layer("expert_ids", 0) for folder in (unsigned, signed))
        )


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([0, -1, 1], "in which an id follows a -1"),
        ([-1, 0, -1], "in which an id follows a -1"),
        ([-2, -1, -1], "out of range"),
        ([0, 6, -1], "out of range"),
        ([3, 3, -1], "names an expert twice"),
    ],
)
def test_sets_that_are_none_are_refused(tmp_path: Path, write_trace: Any, row: list[int], told: str) -> None:
    """A short set ends at its first -1: whatever else it holds is damage."""
    ids_LTK = np.tile(np.array([0, 1, 2]), (2, 9, 1))
    ids_LTK[1, 4] = row
    written = write_trace(tmp_path, ids_LTK=ids_LTK, num_experts=6, requests=2, short=0.0)
    save_signed(written, ids_LTK)
    with pytest.raises(TraceError, match=rf"layer 1, token 4 .*{told}"):
        count(open_trace(tmp_path))


def test_a_row_without_experts_is_no_token(tmp_path: Path, write_trace: Any) -> None:
    """Such a row would count as a token that visits nothing."""
    ids_LTK = np.tile(np.array([0, 1, -1]), (2, 9, 1))
    ids_LTK[:, 3] = -1
    written = write_trace(tmp_path, ids_LTK=ids_LTK, num_experts=6, requests=2, short=0.0)
    save_signed(written, ids_LTK)
    with pytest.raises(TraceError, match="token 3 has no expert in any layer"):
        count(open_trace(tmp_path))


def save_signed(written: Any, ids_LTK: np.ndarray) -> None:
    """Put these very ids into the only shard."""
    tensors = load_file(written.shards[0])
    save_file({**tensors, "expert_ids": ids_LTK.astype(np.int16)}, written.shards[0], {"schema": "expert-trace/1"})


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


def test_workers_change_nothing(tmp_path: Path, write_trace: Any) -> None:
    """The same bytes without an executor, with one thread and with four."""
    trace = open_trace(write_trace(tmp_path, num_layers=5, tokens=300, num_shards=4).folder)
    alone = count(trace, sample_tokens=64)
    for workers in (1, 4):
        with ThreadPoolExecutor(workers) as executor:
            assert_same(count(trace, sample_tokens=64, executor=executor), alone)


def test_files_change_nothing(tmp_path: Path, write_trace: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """How tokens are cut into shards and blocks does not show in the counts, the sample or the digest."""
    one = count(open_trace(write_trace(tmp_path / "one", tokens=300, num_shards=1).folder), sample_tokens=64)
    five = open_trace(write_trace(tmp_path / "five", tokens=300, num_shards=5).folder)
    many = open_trace(write_trace(tmp_path / "many", tokens=300, num_shards=150).folder)
    for trace in (five, many):
        assert_same(count(trace, sample_tokens=64), one)
    for tokens in (7, 130):  # less than a shard of the five, and two of them
        monkeypatch.setattr("placement.traces.trace.CHUNK_TOKENS", tokens)
        for trace in (five, many):
            assert_same(count(trace, sample_tokens=64), one)
    assert count(five, sample_tokens=64).digest() == one.digest()


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


def test_digest_names_the_content(tmp_path: Path, write_trace: Any) -> None:
    """One changed token changes the digest."""
    written = write_trace(tmp_path / "a", num_experts=6, tokens=40)
    ids = written.ids_LTK.copy()
    ids[1, 17] = (ids[1, 17] + 1) % 6
    other = write_trace(tmp_path / "b", num_experts=6, ids_LTK=ids)
    digests = {count(open_trace(part.folder)).digest() for part in (written, other)}
    assert len(digests) == 2
    assert all(digest.startswith("sha256:") and len(digest) == 7 + 64 for digest in digests)


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


class TestRefusals:
    """Workloads that do not belong together are refused."""

    @pytest.fixture
    def workload(self, tmp_path: Path, write_trace: Any) -> Workload:
        return count(open_trace(write_trace(tmp_path / "base").folder))

    @pytest.mark.parametrize("change", [{"num_experts": 9}, {"top_k": 3}, {"layer_ids": [0, 2]}])
    def test_another_model(self, workload: Workload, change: dict[str, Any], tmp_path: Path, write_trace: Any) -> None:
        other = count(open_trace(write_trace(tmp_path / "other", **change).folder))
        with pytest.raises(InputError, match="cannot be added"):
            workload + other

    @pytest.mark.parametrize("field", ["seed", "sample_tokens", "profile_requests"])
    def test_another_sampling(self, workload: Workload, field: str) -> None:
        with pytest.raises(InputError, match="cannot be added"):
            workload + dataclasses.replace(workload, **{field: 5})

    def test_another_name_is_no_other_model(self, workload: Workload, tmp_path: Path, write_trace: Any) -> None:
        other = count(open_trace(write_trace(tmp_path / "other", name="another name").folder))
        assert (workload + other).num_tokens == 2 * workload.num_tokens

    def test_nothing_selected(self, tmp_path: Path, write_trace: Any) -> None:
        trace = open_trace(write_trace(tmp_path / "t", requests=4).folder)
        with pytest.raises(TraceError, match="no tokens"):
            count(trace.select(np.zeros(4, dtype=bool)))

    def test_negative_seed(self, tmp_path: Path, write_trace: Any) -> None:
        """Any seed that fits 64 bits works; others are refused as ours, not with a crash of the hash."""
        trace = open_trace(write_trace(tmp_path / "t").folder)
        assert count(trace, seed=-1).num_tokens == 60
        with pytest.raises(PlacementError):
            count(trace, seed=2**64)
