"""What was counted is not counted again; what changed or was damaged is, or is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from counted_folders import SHAPE, content
from safetensors.numpy import load_file, save_file

from placement import count, open_trace
from placement.errors import TraceError
from placement.workload.counts_folder import count_to_folder, read_counted


def test_an_interrupted_count_goes_on(tmp_path: Path, write_trace: Any) -> None:
    """What was counted before the interruption is not counted again; the result is that of one go."""
    trace = open_trace(write_trace(tmp_path / "t", **SHAPE).folder)
    counted: list[bool] = []

    def interrupt(_: int, now: bool) -> None:
        counted.append(now)
        if len(counted) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_to_folder(trace, tmp_path / "c", holdout=0.2, progress=interrupt)
    with pytest.raises(TraceError, match="not complete"):
        read_counted(tmp_path / "c")
    resumed: list[bool] = []
    count_to_folder(trace, tmp_path / "c", holdout=0.2, progress=lambda _, now: resumed.append(now))
    assert resumed == [False, False, True, True, True]
    count_to_folder(trace, tmp_path / "one-go", holdout=0.2)
    assert content(tmp_path / "c") == content(tmp_path / "one-go")


def test_a_changed_shard_is_counted_again(tmp_path: Path, write_trace: Any) -> None:
    """One whose content changed, whatever its times say; not one that was merely copied or touched."""
    written = write_trace(tmp_path / "t", **SHAPE)
    trace = open_trace(written.folder)
    count_to_folder(trace, tmp_path / "c", holdout=0.2)

    def again(name: str = "c") -> list[bool]:
        seen: list[bool] = []
        count_to_folder(
            open_trace(written.folder), tmp_path / name, holdout=0.2, progress=lambda _, now: seen.append(now)
        )
        return seen

    assert again() == [False] * 5
    os.utime(written.shards[1])
    copy = written.shards[2].read_bytes()
    written.shards[2].unlink()
    written.shards[2].write_bytes(copy)
    assert again() == [False] * 5
    before = written.shards[3].stat()
    _swap_two_experts(written.shards[3])
    os.utime(written.shards[3], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert sum(again()) == 1
    assert sum(again("fresh")) == 5
    assert content(tmp_path / "c") == content(tmp_path / "fresh")


def _swap_two_experts(path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    tensors = load_file(path)
    tensors["expert_ids"] = np.roll(tensors["expert_ids"], 1, axis=2)
    tensors["expert_ids"][0, 0] = np.setdiff1d(np.arange(6), tensors["expert_ids"][0, 0])[:2]
    save_file(tensors, path, metadata={"schema": "expert-trace/1"})


def test_other_ids_of_requests_are_counted_again(tmp_path: Path, write_trace: Any) -> None:
    """Ids decide who is held out; requests that come after those of a shard do not matter to it."""
    written = write_trace(tmp_path / "t", **SHAPE)
    count_to_folder(open_trace(written.folder), tmp_path / "c", holdout=0.2)
    manifest = json.loads((written.folder / "trace.json").read_text())
    manifest["requests"].append({"id": "without tokens"})
    manifest["requests"][8]["id"] = "renamed"
    (written.folder / "trace.json").write_text(json.dumps(manifest))
    seen: list[bool] = []
    count_to_folder(open_trace(written.folder), tmp_path / "c", holdout=0.2, progress=lambda _, now: seen.append(now))
    assert sum(seen) == 1


def test_a_damaged_piece_is_counted_again(tmp_path: Path, write_trace: Any) -> None:
    trace = open_trace(write_trace(tmp_path / "t", **SHAPE).folder)
    count_to_folder(trace, tmp_path / "c", holdout=0.2)
    before = content(tmp_path / "c")
    piece = min((tmp_path / "c" / "pieces").iterdir())
    piece.write_bytes(piece.read_bytes()[:-9])
    count_to_folder(trace, tmp_path / "c", holdout=0.2)
    assert content(tmp_path / "c") == before


def test_damaged_counts_are_refused(tmp_path: Path, write_trace: Any) -> None:
    """In one line, whatever is wrong with either file."""
    trace = open_trace(write_trace(tmp_path / "t", **SHAPE).folder)
    count_to_folder(trace, tmp_path / "c", holdout=0.2)
    manifest, arrays = content(tmp_path / "c")
    document = json.loads(manifest)
    bad = [b"", b"[]", b"{", *(json.dumps({**document, key: None}).encode() for key in document)]
    bad += [json.dumps(document | {"model": document["model"] | {"num_experts": size}}).encode() for size in (0, 3, 9)]
    for text in bad:
        (tmp_path / "c" / "counts.json").write_bytes(text)
        with pytest.raises(TraceError):
            read_counted(tmp_path / "c")
    (tmp_path / "c" / "counts.json").write_bytes(manifest)
    for data in (b"", arrays[:-1], arrays[: len(arrays) // 2]):
        (tmp_path / "c" / "counts.safetensors").write_bytes(data)
        with pytest.raises(TraceError):
            read_counted(tmp_path / "c")


@pytest.mark.parametrize(
    ("field", "change", "told"),
    [
        ("load_LE", lambda a: a + 1, "is not that of"),
        ("coact_LEE", lambda a: a[:, ::-1], "do not agree"),
        ("sample_key_S", lambda a: a[::-1], "not in order"),
        ("profile_key_Q", lambda a: np.zeros_like(a), "not in order"),
        ("sample_ids_SLK", lambda a: np.zeros_like(a), "names an expert twice"),
        ("sample_ids_SLK", lambda a: np.full_like(a, 200), "out of range"),
    ],
)
def test_counts_that_are_none_are_refused(
    field: str, change: Callable[[Any], Any], told: str, tmp_path: Path, write_trace: Any
) -> None:
    """Whole files whose numbers no traffic has: solvers trust them."""
    trace = open_trace(write_trace(tmp_path / "t", **SHAPE).folder)
    count_to_folder(trace, tmp_path / "c", holdout=0.2)
    arrays = load_file(tmp_path / "c" / "counts.safetensors")
    arrays[f"train.{field}"] = np.ascontiguousarray(change(arrays[f"train.{field}"]))
    save_file(arrays, tmp_path / "c" / "counts.safetensors")
    with pytest.raises(TraceError, match=told):
        read_counted(tmp_path / "c")


def test_faults_of_tokens_that_do_not_count_do_not_matter(tmp_path: Path, write_trace: Any) -> None:
    """As a trace is read: only what is kept is checked, and all of that."""
    ids_LTK = np.tile(np.array([0, 1], dtype=np.uint8), (2, 8, 1))
    ids_LTK[1, 5] = [2, 77]
    ids_LTK[1, 6] = [3, 3]
    written = write_trace(tmp_path, ids_LTK=ids_LTK, request_T=np.arange(8) // 4, requests=2)
    trace = open_trace(written.folder)
    assert count(trace.select(np.array([True, False]))).coact_LEE[1, 0, 1] == 4
    with pytest.raises(TraceError, match=r"layer 1, token 5 has expert id \[2, 77\]"):
        count(trace)


@pytest.mark.parametrize("ids", [[2, 77], [3, 3]])
def test_a_fault_is_found_in_its_shard(ids: list[int], tmp_path: Path, write_trace: Any) -> None:
    """Small shards are counted together: the error names the one, and the token's place in it."""
    ids_LTK = np.tile(np.array([0, 1], dtype=np.uint8), (2, 40, 1))
    ids_LTK[1, 26] = ids
    written = write_trace(tmp_path, ids_LTK=ids_LTK, num_shards=5)
    told = rf"{written.shards[3].name}: layer 1, token 2 has .*\[{ids[0]}, {ids[1]}\]"
    with pytest.raises(TraceError, match=told):
        count(open_trace(written.folder))
