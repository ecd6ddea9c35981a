"""Counts equal those of loops over tokens, whatever the types, files and workers."""

from __future__ import annotations

import dataclasses
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brute_counts import assert_same, brute_counts, save_signed, shapes
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import InputError, PlacementError, Workload, count, open_trace
from placement.errors import TraceError


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


def test_digest_names_the_content(tmp_path: Path, write_trace: Any) -> None:
    """One changed token changes the digest."""
    written = write_trace(tmp_path / "a", num_experts=6, tokens=40)
    ids = written.ids_LTK.copy()
    ids[1, 17] = (ids[1, 17] + 1) % 6
    other = write_trace(tmp_path / "b", num_experts=6, ids_LTK=ids)
    digests = {count(open_trace(part.folder)).digest() for part in (written, other)}
    assert len(digests) == 2
    assert all(digest.startswith("sha256:") and len(digest) == 7 + 64 for digest in digests)


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
