"""Counts of a folder merge to the bytes of the whole; what does not belong together is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
from counted_folders import SHAPE, content
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import count, open_trace
from placement.errors import OptionError, OutputError, TraceError
from placement.support.parallel import make_executor, run_in_order
from placement.traces.split import below_share, request_keys
from placement.workload.counted import count_sides
from placement.workload.counts_folder import count_to_folder, merge_counted, parse_part


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


@pytest.mark.parametrize("text", ["", "3", "0/2", "3/2", "1/", "/2", "-1/2", "a/b", "1/2/3", "1/9999999"])
def test_parts_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match="I/N"):
        parse_part(text)


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
