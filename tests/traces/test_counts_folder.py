"""A trace is counted once, in any number of parts, on from where it was interrupted, and always to the same bytes."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from placement import count, open_trace
from placement.errors import OptionError, OutputError, TraceError
from placement.support.parallel import make_executor, run_in_order
from placement.traces.split import below_share, request_keys
from placement.workload.counted import count_sides
from placement.workload.counts_folder import count_to_folder, merge_counted, parse_part, read_counted

FILES = ("counts.json", "counts.safetensors")
SHAPE = {"tokens": 90, "requests": 9, "num_shards": 5, "num_experts": 6, "top_k": 2}


@pytest.fixture(autouse=True)
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("placement.workload.segment.SEGMENT_TOKENS", 20)


def content(folder: Path) -> list[bytes]:
    return [(folder / name).read_bytes() for name in FILES]


@settings(max_examples=15)
@given(
    tokens=st.integers(1, 70),
    shards=st.integers(1, 5),
    seed=st.integers(0, 1000),
    parts=st.integers(1, 5),
    segment=st.integers(1, 30),
    sample=st.sampled_from([1, 5, 1000]),
    order=st.randoms(use_true_random=False),
    holdout=st.sampled_from([0.0, 0.3]),
    short=st.sampled_from([None, 0.0, 0.3]),
)
def test_parts_merge_to_the_bytes_of_the_whole(
    tokens: int,
    shards: int,
    seed: int,
    parts: int,
    segment: int,
    sample: int,
    order: Any,
    holdout: float,
    short: float | None,
    write_trace: Any,
) -> None:
    """Whatever the number of parts, their order, the segments, the workers and which shards have short sets; large
    shards are cut, too."""
    with tempfile.TemporaryDirectory() as root, patch("placement.workload.counted.MEASURED_TOKENS", sample):
        folder = Path(root)
        # few experts and positions that all are alike: many tokens have the same key and the same experts, or not quite
        shape = {"tokens": tokens, "num_shards": shards, "seed": seed, "num_experts": 3, "num_layers": 3}
        for name, share in (("t", None), ("u", short)):
            _forget_positions(write_trace(folder / name, **shape, short=share))
        trace = open_trace([folder / "t", folder / "u"])
        count_to_folder(trace, folder / "whole", holdout=holdout)
        with patch("placement.workload.segment.SEGMENT_TOKENS", segment), make_executor(3) as executor:
            pieces = [folder / f"part{number}" for number in range(1, parts + 1)]
            for number, piece in enumerate(pieces, start=1):
                count_to_folder(trace, piece, holdout=holdout, part=(number, parts), executor=executor)
            order.shuffle(pieces)
            merge_counted(pieces, folder / "merged")
        # with other segments large shards are listed in other pieces, so this looks at what was counted alone
        assert content(folder / "merged")[1] == content(folder / "whole")[1]


def _forget_positions(written: Any) -> None:
    from safetensors.numpy import load_file, save_file

    for path in written.shards:
        tensors = load_file(path)
        tensors["position"][:] = 0
        save_file(tensors, path, metadata={"schema": "expert-trace/1"})


def test_both_files_are_the_same_with_the_same_segments(tmp_path: Path, write_trace: Any) -> None:
    """counts.json too: its shards are listed in one order."""
    trace = open_trace(write_trace(tmp_path / "t", **SHAPE).folder)
    count_to_folder(trace, tmp_path / "whole", holdout=0.2)
    for number in (1, 2, 3):
        count_to_folder(trace, tmp_path / f"p{number}", holdout=0.2, part=(number, 3))
    merge_counted([tmp_path / "p3", tmp_path / "p1", tmp_path / "p2"], tmp_path / "merged")
    assert content(tmp_path / "merged") == content(tmp_path / "whole")


@settings(max_examples=25)
@given(tokens=st.integers(20, 80), seed=st.integers(0, 1000), sample=st.sampled_from([7, 1000]))
def test_sides_are_the_counts_of_their_requests(tokens: int, seed: int, sample: int, write_trace: Any) -> None:
    """One pass for both sides gives what counting each side's requests alone gives, in every field."""
    with tempfile.TemporaryDirectory() as root, patch("placement.workload.counted.MEASURED_TOKENS", sample):
        trace = open_trace(write_trace(root, tokens=tokens, seed=seed, requests=10, num_shards=3, top_k=3).folder)
        drawn = below_share(request_keys([request.id for request in trace.requests], seed), 0.4)
        if drawn.all() or not drawn.any():
            return
        both = count_sides(trace, holdout=0.4, seed=seed)
        for side, mine in zip(both.sides, (~drawn, drawn), strict=True):
            alone = count(trace.select(mine), seed=seed, sample_tokens=sample)
            assert side.num_tokens == alone.num_tokens
            assert side.digest() == alone.digest()
            np.testing.assert_array_equal(side.coact_LEE, alone.coact_LEE)
            np.testing.assert_array_equal(side.profile_QLE, alone.profile_QLE)


def test_about_the_share_of_requests_is_held_out() -> None:
    """The draw is fair, and does not depend on which requests have the smallest keys, whose profiles are kept."""
    key_Q = request_keys([f"request {number}" for number in range(20_000)], 0)
    assert abs(below_share(key_Q, 0.2).mean() - 0.2) < 4 * 0.4 / np.sqrt(20_000)
    assert abs(below_share(np.sort(key_Q)[:2000], 0.2).mean() - 0.2) < 4 * 0.4 / np.sqrt(2_000)


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


def test_what_does_not_belong_together_is_refused(tmp_path: Path, write_trace: Any) -> None:
    """Errors name the folder and what is wrong; nothing is counted double or left out without a word."""
    trace = open_trace(write_trace(tmp_path / "t", **SHAPE).folder)
    other = open_trace(write_trace(tmp_path / "o", **SHAPE | {"num_experts": 7}).folder)
    for number in (1, 2):
        count_to_folder(trace, tmp_path / f"p{number}", holdout=0.2, part=(number, 2))
    count_to_folder(trace, tmp_path / "whole", holdout=0.2)
    count_to_folder(trace, tmp_path / "seed", holdout=0.2, seed=1)
    count_to_folder(other, tmp_path / "other", holdout=0.2)
    cases = [
        (["p1"], "part 2/2 is missing"),
        (["p1", "p2", "whole"], "is counted in"),
        (["whole", "whole"], "is counted in"),
        (["whole", "seed"], "was counted with"),
        (["whole", "other"], "another model"),
        (["whole", "t"], "no folder of counts"),
    ]
    for names, told in cases:
        with pytest.raises(TraceError, match=told):
            merge_counted([tmp_path / name for name in names], tmp_path / "m")
        assert not (tmp_path / "m").exists()
    with pytest.raises(OptionError, match="was begun with settings"):
        count_to_folder(trace, tmp_path / "whole", holdout=0.3)
    with pytest.raises(OptionError, match="was begun with model"):
        count_to_folder(other, tmp_path / "whole", holdout=0.2)
    with pytest.raises(OutputError, match="nothing is overwritten"):
        count_to_folder(trace, tmp_path / "t", holdout=0.2)


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


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/", "/2", "-1/2", "a/b", "1/2/3", "1/9999999"])
def test_parts_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match="I/N"):
        parse_part(text)


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


def test_run_in_order_begins_few_and_keeps_order() -> None:
    """No more items are drawn than may be under way; answers come in the order of the items."""
    drawn: list[int] = []

    def items() -> Any:
        for number in range(20):
            drawn.append(number)
            yield number

    with make_executor(4) as executor:
        for taken, answer in enumerate(run_in_order(lambda x: x * x, items(), executor, 3)):
            assert answer == taken * taken
            assert len(drawn) <= taken + 4
