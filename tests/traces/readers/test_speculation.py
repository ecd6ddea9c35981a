"""Of a server with drafts each token is told once, and drafts that were rejected are told apart."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from speculating_server import EXTEND, TOP_K, VERIFY, Server, dump, record, rows_of, sets, told

from placement.errors import TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import convert
from placement.readers.sglang_drafts import Drafts
from placement.readers.sglang_requests import RequestTracker
from placement.traces.format import DECODE, DRAFT, PREFILL
from placement.traces.trace import open_trace


@given(seed=st.integers(0, 10_000), width=st.integers(2, 6), tree=st.booleans(), requests=st.integers(1, 5))
def test_rows_of_a_server_with_drafts(
    seed: int, width: int, tree: bool, requests: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever is accepted, whoever joins or ends: each row has its request, position and phase, and none is lost."""
    rng = np.random.default_rng(seed)
    server = Server(rng, width, tree=tree)
    lengths = (rng.permutation(requests + 1) * 200 + rng.integers(3, 90, requests + 1)).tolist()
    server.prefill(*lengths[:requests])
    depth = 1 + width // 2 if tree else width
    for turn in range(6):
        if turn == 2:
            server.prefill(lengths[requests])  # one joins
        elif turn == 4 and len(server.at) > 1:
            server.at.pop(next(iter(server.at)))  # one is done
        elif turn and rng.random() < 0.2:  # a dump without any pass that verifies is read as one without drafts
            server.decode()
        else:
            server.verify({request: int(rng.integers(1, depth + 1)) for request in server.at})
    folder = tmp_path_factory.mktemp("server")
    done = convert(dump(folder / "x.pt", server.records), folder / "out")
    assert sorted(rows_of(open_trace(done.output))) == sorted(server.rows)
    rejected = sum(row[2] == DRAFT for row in server.rows)
    if any(one["forward_mode"] == VERIFY for one in server.records):
        assert f"(TARGET_VERIFY) hold {rejected:,} drafts that were rejected" in told(done)
        drafts = sum(len(one["positions"]) for one in server.records if not (one["topk_ids_of_layer"] >= 0).any())
        assert f"{drafts:,} rows of the draft model left out" in told(done)


def test_the_notes_count_what_is_not_known(tmp_path: Path) -> None:
    """Nothing says what was accepted of a last pass, nor which of the siblings of a tree was."""
    server = Server(np.random.default_rng(0), 5, tree=True)
    server.prefill(10)
    server.verify({0: 2})
    server.verify({0: 1})
    done = convert(dump(tmp_path / "x.pt", server.records), tmp_path / "out")
    assert "2 drafts of the last pass of their requests are called decode" in told(done)
    assert "1 accepted tokens had several drafts (a tree)" in told(done)


def test_ranks_that_recorded_the_same_passes(tmp_path: Path) -> None:
    """Under tensor parallelism each rank dumps the same: rows and notes count once; with data parallelism all count."""
    folder = tmp_path / "ranks"
    folder.mkdir()
    servers = [Server(np.random.default_rng(seed), 4) for seed in (1, 2)]
    for server in servers:
        server.prefill(10)
        server.verify({0: 2})
        server.verify({0: 1})
    for rank, server in enumerate((servers[0], servers[0], servers[1])):
        dump(folder / f"r_{rank}.pt", server.records)
    done = convert(folder, tmp_path / "out")
    assert done.num_tokens == 2 * len(servers[0].rows) and done.num_requests == 2
    assert "4 passes of forward_mode 5 (TARGET_VERIFY) hold 4 drafts that were rejected" in told(done)


def test_requests_that_stand_one_behind_the_other(tmp_path: Path) -> None:
    """Two chains that look like one are cut as the running requests stand."""
    server = Server(np.random.default_rng(1), 4)
    server.prefill(20, 24)
    for _ in range(3):
        server.verify({0: 3, 1: 3})
    done = convert(dump(tmp_path / "x.pt", server.records), tmp_path / "out")
    assert sorted(rows_of(open_trace(done.output))) == sorted(server.rows) and done.num_requests == 2


@pytest.mark.parametrize(
    ("positions", "lengths"),
    [
        ([20, 21, 22, 23, 30, 31, 32, 33], [4, 4]),
        ([20, 21, 22, 30, 31], [3, 2]),  # drafts of different lengths
        ([7, 8, 8, 9], [4]),
        ([7, 8, 9, 8, 9, 30, 31, 31, 32, 31], [5, 5]),
        ([20, 21, 22, 23], [4]),
        ([5], [1]),
        ([], []),
    ],
)
def test_passes_are_cut_by_positions(positions: list[int], lengths: list[int]) -> None:
    """A pass that recording began with has no running requests to go by."""
    assert Drafts().cut(np.array(positions, dtype=np.int32), RequestTracker()) == lengths


def test_lengths_that_are_told_are_taken(tmp_path: Path) -> None:
    """A version that gives extend_seq_lens for these passes is believed."""
    rng = np.random.default_rng(2)
    passes = [
        record(VERIFY, [4, 5, 6, 7], sets(rng, 4), [2, 2]),
        record(VERIFY, [5, 6, 8, 9], sets(rng, 4), [2, 2]),
    ]
    done = convert(dump(tmp_path / "x.pt", passes), tmp_path / "out")
    found = sorted(row[:3] for row in rows_of(open_trace(done.output)))
    assert found == [
        ["0", 4, 1],
        ["0", 5, 1],
        ["0", 5, 2],
        ["0", 6, 1],
        ["1", 6, 1],
        ["1", 7, 1],
        ["1", 8, 1],
        ["1", 9, 1],
    ]


@pytest.mark.parametrize("mode", [6, 7])
def test_passes_of_the_draft_model_are_left_out(mode: int, tmp_path: Path) -> None:
    """With ids or without: they are of layers that the map has not. Of a dump without drafts nothing changes."""
    rng = np.random.default_rng(3)
    passes = [record(EXTEND, [0, 1, 2], sets(rng, 3), [3]), record(mode, [1, 2, 3], sets(rng, 3), [3])]
    done = convert(dump(tmp_path / "x.pt", passes), tmp_path / "out")
    assert done.num_tokens == 3 and "3 rows of the draft model left out (forward_mode 6 and 7" in told(done)
    done = convert(dump(tmp_path / "y.pt", [*passes[:1], record(EXTEND, [0], None, [1])]), tmp_path / "plain")
    assert "1 unused rows" in told(done) and "draft model" not in told(done)


def test_other_modes_are_named(tmp_path: Path) -> None:
    """What differs by version is said where it can be read, and refused where it cannot."""
    rng = np.random.default_rng(4)
    done = convert(dump(tmp_path / "x.pt", [record(8, [0, 1], sets(rng, 2), [2])]), tmp_path / "out")
    assert "1 passes of forward_mode 8, which differs by version, were read as prompts" in told(done)
    with pytest.raises(TraceError, match=r"record 0 is a pass of prompts without extend_seq_lens.* \(forward_mode 9\)"):
        convert(dump(tmp_path / "y.pt", [record(9, [0, 1], sets(rng, 2))]), tmp_path / "none")


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_rows_beyond_the_tokens_of_a_response(engine: str, tmp_path: Path) -> None:
    """Of an answer's tokens the last may have a row; what comes after it was drafted and rejected."""
    rng = np.random.default_rng(5)
    ids_TLK = np.moveaxis(sets(rng, 12), 1, 0).astype("<i4")
    usage = {"prompt_tokens": 4, "completion_tokens": 5}
    text = base64.b64encode(ids_TLK.tobytes()).decode()
    response: dict[str, Any] = {"meta_info": {"id": "a", "routed_experts": text} | usage}
    if engine == "vllm":
        value = {"data": text, "shape": ids_TLK.shape, "dtype": "int32"}
        response = {"id": "a", "choices": [{"routed_experts": value}], "usage": usage}
    (tmp_path / "x.jsonl").write_text(json.dumps(response))
    if engine == "sglang":  # 24 ids of 9 tokens cannot be: another response says how wide a row is
        whole = {"meta_info": usage | {"id": "b", "completion_tokens": 9, "routed_experts": text}}
        (tmp_path / "x.jsonl").write_text(json.dumps(whole) + "\n" + json.dumps(response))
    done = convert(tmp_path / "x.jsonl", tmp_path / "out", options=ReadOptions(top_k=TOP_K))
    phases = [row[2] for row in rows_of(open_trace(done.output)) if row[0] == "a"]
    assert phases == [PREFILL] * 4 + [DECODE] * 5 + [DRAFT] * 3
    assert "3 rows beyond the tokens of their responses are called rejected drafts" in told(done)
