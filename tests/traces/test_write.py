"""Writing, merging and splitting traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.model import Model
from placement.errors import OutputError, TraceError
from placement.traces.format import RequestEntry, read_manifest
from placement.traces.split import split_requests
from placement.traces.trace import Trace, open_trace
from placement.traces.write import TokenPiece, merge_traces, new_folder, write_split, write_trace
from placement.workload.as_trace import write_sample
from placement.workload.count import count

MODEL = Model(name="tiny", layer_ids=(0, 1, 4), num_experts=300, top_k=2, num_groups=3)


def make(
    path: Path, entries: list[dict], tokens: int, seed: int = 0, weights: bool = True, shard_tokens: int = 16_384
) -> Path:
    generator = np.random.default_rng(seed)
    shape = (3, tokens, 2)
    ids_LTK = np.stack([generator.integers(150, size=shape[:2]), generator.integers(150, 300, size=shape[:2])], axis=2)
    piece = TokenPiece(
        ids_LTK=ids_LTK.astype(np.uint16),
        weights_LTK=generator.random(shape).astype(np.float16) if weights else None,
        request_T=generator.integers(len(entries), size=tokens),
        position_T=np.arange(tokens),
        phase_T=generator.integers(2, size=tokens),
    )
    with new_folder(path) as folder:
        write_trace(
            folder,
            iter([piece]),
            model=MODEL,
            requests=tuple(RequestEntry(**entry) for entry in entries),
            extras={"licence": "none", "nested": {"a": [1]}},
            shard_tokens=shard_tokens,
        )
    return path


def rows(trace: Trace) -> list[tuple]:
    """Every kept token: the id of its request, position, phase, ids and weights in all layers."""
    found = []
    for block in trace.blocks():
        layers = range(trace.model.num_layers)
        ids = np.stack([block.ids_TK(layer) for layer in layers], axis=1)
        weights = [block.weights_TK(layer) for layer in layers] if block.shard.has_weights else []
        columns = zip(
            [trace.requests[index].id for index in block.request_T],
            block.column_T("position").tolist(),
            block.column_T("phase").tolist(),
            ids.tolist(),
            np.stack(weights, axis=1).tolist() if weights else [None] * len(ids),
            strict=True,
        )
        found += list(columns)
    return found


ENTRIES = [{"id": "a", "domain": "x", "url": "u"}, {"id": "b", "score": 0.5}, {"id": "c"}]


def test_a_merge_keeps_tokens_in_order_and_all_keys(tmp_path: Path) -> None:
    make(tmp_path / "1", ENTRIES, 50, 1, shard_tokens=7)
    make(tmp_path / "2", [{"id": "d", "category": "y"}], 30, 2)
    both = open_trace([tmp_path / "1", tmp_path / "2"])
    assert merge_traces(both, tmp_path / "out") == 80
    merged = open_trace(tmp_path / "out")
    assert rows(merged) == rows(both)
    assert len(merged.shards) == 1
    assert merged.model == MODEL
    document = json.loads((tmp_path / "out" / "trace.json").read_text())
    assert document["requests"] == [*ENTRIES, {"id": "d", "category": "y"}]
    assert document["licence"] == "none"
    assert document["nested"] == {"a": [1]}


def test_merging_does_not_change_what_is_counted(tmp_path: Path) -> None:
    make(tmp_path / "1", ENTRIES, 50, 1)
    make(tmp_path / "2", ENTRIES[:2], 30, 2)
    both = open_trace([tmp_path / "1", tmp_path / "2"])
    merge_traces(both, tmp_path / "out")
    assert count(open_trace(tmp_path / "out")).digest() == count(both).digest()


def test_equal_entries_become_one_and_different_ones_with_the_same_id_stay_apart(tmp_path: Path) -> None:
    make(tmp_path / "1", [{"id": "a"}, {"id": "b"}], 20)
    make(tmp_path / "2", [{"id": "b"}, {"id": "a", "domain": "other"}], 20)
    merge_traces(open_trace([tmp_path / "1", tmp_path / "2"]), tmp_path / "out")
    entries = read_manifest(tmp_path / "out").requests
    assert [(entry.id, entry.domain) for entry in entries] == [("a", None), ("b", None), ("a", "other")]


def test_weights_are_kept_only_if_all_shards_have_them(tmp_path: Path) -> None:
    make(tmp_path / "1", ENTRIES, 20)
    make(tmp_path / "2", ENTRIES, 20, weights=False)
    merge_traces(open_trace([tmp_path / "1", tmp_path / "2"]), tmp_path / "out")
    assert not any(shard.has_weights for shard in open_trace(tmp_path / "out").shards)


@settings(max_examples=25, deadline=None)
@given(
    tokens=st.integers(1, 60),
    selected=st.lists(st.booleans(), min_size=3, max_size=3),
    shard_tokens=st.integers(1, 70),
)
def test_the_kept_tokens_of_any_selection_survive_a_merge(
    tmp_path_factory: pytest.TempPathFactory, tokens: int, selected: list[bool], shard_tokens: int
) -> None:
    folder = tmp_path_factory.mktemp("traces")
    trace = open_trace(make(folder / "in", ENTRIES, tokens, shard_tokens=shard_tokens)).select(np.array(selected))
    kept = rows(trace)
    if not kept:
        with pytest.raises(TraceError, match="no tokens of the selected requests"):
            merge_traces(trace, folder / "out")
        assert not (folder / "out").exists()
        return
    merge_traces(trace, folder / "out")
    merged = open_trace(folder / "out")
    assert rows(merged) == kept
    assert [entry.id for entry in merged.requests] == [
        e["id"] for e, keep in zip(ENTRIES, selected, strict=True) if keep
    ]


def test_a_split_has_every_token_once_and_requests_whole(tmp_path: Path) -> None:
    trace = open_trace(make(tmp_path / "in", [{"id": str(i)} for i in range(10)], 200))
    rest, part = split_requests(trace, 0.3, seed=0)
    sizes = write_split(rest, part, tmp_path / "out")
    train, held_out = (open_trace(tmp_path / "out" / name) for name in ("train", "held-out"))
    assert sizes == (train.num_tokens_stored, held_out.num_tokens_stored)
    assert sorted(rows(train) + rows(held_out)) == sorted(rows(trace))
    assert {entry.id for entry in train.requests}.isdisjoint(entry.id for entry in held_out.requests)
    assert len(held_out.requests) == 3


@pytest.mark.parametrize("what", ["folder", "file", "dangling link"])
def test_nothing_is_overwritten(tmp_path: Path, what: str) -> None:
    trace = open_trace(make(tmp_path / "in", ENTRIES, 5))
    out = tmp_path / "out"
    if what == "folder":
        out.mkdir()
        (out / "mine").write_text("x")
    elif what == "file":
        out.write_text("x")
    else:
        out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(OutputError, match="nothing is overwritten"):
        merge_traces(trace, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_an_empty_folder_may_be_written(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    merge_traces(open_trace(make(tmp_path / "in", ENTRIES, 5)), tmp_path / "out")
    assert open_trace(tmp_path / "out").num_tokens_stored == 5


def test_a_folder_that_does_not_exist_is_one_clear_error(tmp_path: Path) -> None:
    trace = open_trace(make(tmp_path / "in", ENTRIES, 5))
    with pytest.raises(OutputError, match=r"cannot write .*: No such file"):
        merge_traces(trace, tmp_path / "missing" / "out")


def test_a_failure_half_way_leaves_nothing_behind(tmp_path: Path) -> None:
    """The second shard is broken after it was opened; the first has been written by then."""
    make(tmp_path / "in", ENTRIES, 40_000)
    trace = open_trace(tmp_path / "in")
    broken = sorted((tmp_path / "in").glob("shard-*"))[1]
    make(tmp_path / "other", [{"id": str(i)} for i in range(9)], 16_384)
    broken.write_bytes((tmp_path / "other" / "shard-00000.safetensors").read_bytes())
    with pytest.raises(TraceError, match="out of range"):
        merge_traces(trace, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "other"]


def test_shards_have_the_given_size_however_the_pieces_fall(tmp_path: Path) -> None:
    make(tmp_path / "in", ENTRIES, 50, shard_tokens=16)
    assert [shard.num_tokens for shard in open_trace(tmp_path / "in").shards] == [16, 16, 16, 2]


@pytest.mark.parametrize(
    "order", [("full", "short"), ("short", "full"), ("full", "short", "other"), ("short", "other")]
)
def test_full_and_short_sets_are_one_trace(order: tuple[str, ...], tmp_path: Path, write_trace: Any) -> None:
    """Folders of both kinds, in whatever order, are merged and split without a change of a set or a count."""
    share = {"full": None, "short": 0.3, "other": 0.0}
    folders = [
        write_trace(
            tmp_path / name,
            seed=number,
            num_experts=300,
            top_k=3,
            short=share[name],
            request_ids=[f"{name}{q}" for q in range(6)],
        ).folder
        for number, name in enumerate(order)
    ]
    both = open_trace(folders)
    merge_traces(both, tmp_path / "merged")
    merged = open_trace(tmp_path / "merged")
    assert rows(merged) == rows(both)
    assert count(merged).digest() == count(both).digest()
    write_split(*split_requests(both, 0.5, 1), tmp_path / "parts")
    parts = open_trace([tmp_path / "parts" / "train", tmp_path / "parts" / "held-out"])
    assert sorted(rows(parts), key=repr) == sorted(rows(both), key=repr)
    write_sample(count(both), tmp_path / "sample")
    assert count(open_trace(tmp_path / "sample")).load_LE.tolist() == count(both).load_LE.tolist()
