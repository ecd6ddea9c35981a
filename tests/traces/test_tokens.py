"""Ids of tokens and prompts in traces: kept by all that cuts, selects, splits and merges, and gone after a scrub."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from placement.cli.app import app
from placement.core.model import Model
from placement.errors import TraceError
from placement.support.tensor_file import write_tensors
from placement.traces.cut import cut_requests
from placement.traces.format import DRAFT, RequestEntry
from placement.traces.prompts import PROMPTS, TokenLists, prompts_of, tokens_of, write_prompts
from placement.traces.split import split_requests
from placement.traces.storage.shard_writer import TokenPiece
from placement.traces.trace import Trace, open_trace
from placement.traces.write import merge_traces, write_split, write_trace

MODEL = Model(name="tiny", layer_ids=(0, 2), num_experts=9, top_k=1)


@st.composite
def folders(draw: Any) -> list[dict[str, Any]]:
    """One to three folders: pieces of tokens with or without ids, prompts or none, ids of requests that may repeat."""
    return [
        {
            "seed": draw(st.integers(0, 10**6)),
            "ids": draw(st.lists(st.sampled_from("abcdef"), min_size=2, max_size=4, unique=True)),
            "pieces": draw(st.lists(st.tuples(st.integers(1, 12), st.booleans()), min_size=1, max_size=4)),
            "prompts": draw(st.booleans()),
            "shard_tokens": draw(st.integers(1, 20)),
        }
        for _ in range(draw(st.integers(1, 3)))
    ]


def write(folder: Path, plan: dict[str, Any]) -> None:
    rng = np.random.default_rng(plan["seed"])
    entries = [RequestEntry(id=name) for name in plan["ids"]]

    def piece(size: int, known: bool) -> TokenPiece:
        return TokenPiece(
            ids_LTK=rng.integers(0, 9, (2, size, 1)).astype(np.uint8),
            request_T=rng.integers(0, len(entries), size).astype(np.int32),
            position_T=rng.permutation(size).astype(np.int32),
            phase_T=rng.integers(0, 3, size).astype(np.uint8),
            token_T=rng.integers(-1, 50, size).astype(np.int32) if known else None,
        )

    folder.mkdir()
    pieces = (piece(*one) for one in plan["pieces"])
    write_trace(folder, pieces, model=MODEL, requests=entries, shard_tokens=plan["shard_tokens"])
    if plan["prompts"]:
        length_Q = rng.integers(0, 4, len(entries))
        write_prompts(folder, TokenLists.of(rng.integers(0, 50, length_Q.sum()).astype(np.int32), length_Q))


def rows(trace: Trace) -> list[tuple[str, int, int, int, tuple[int, ...]]]:
    """Every kept token: its request, position, phase, id (-1: not known) and experts, read one by one."""
    found = []
    for block in trace.blocks():
        token_T = block.column_T("token") if block.shard.has_tokens else [-1] * len(block.request_T)
        ids_TL = np.stack([block.ids_TK(layer)[:, 0] for layer in (0, 1)], axis=1).tolist()
        columns = (block.request_T, block.column_T("position"), block.column_T("phase"), token_T)
        for *cells, ids in zip(*(list(map(int, column)) for column in columns), ids_TL, strict=True):
            found.append((trace.requests[cells[0]].id, *cells[1:], tuple(ids)))
    return found


def first_prompts(trace: Trace, plans: list[dict[str, Any]], root: Path) -> dict[str, list[int]]:
    """The first prompt that the folders tell of each id, in plain Python."""
    told: dict[str, list[int]] = {}
    for number, plan in enumerate(plans):
        lists = prompts_of(open_trace(root / str(number)))
        for q, name in enumerate(plan["ids"]):
            if plan["prompts"] and len(lists.list_of(q)) and stored_length(root / str(number), q):
                told.setdefault(name, lists.list_of(q).tolist())
    return told


def stored_length(folder: Path, request: int) -> int:
    from safetensors.numpy import load_file

    return int(load_file(folder / PROMPTS)["length"][request])


@settings(max_examples=60, deadline=None)
@given(plans=folders(), seed=st.integers(0, 99))
def test_ids_of_tokens_and_prompts_survive_a_merge_and_a_split_and_not_a_scrub(
    plans: list[dict[str, Any]], seed: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for number, plan in enumerate(plans):
            write(root / str(number), plan)
        trace = open_trace([root / str(number) for number in range(len(plans))])
        merge_traces(trace, root / "merged")
        merged = open_trace(root / "merged")
        assert rows(merged) == rows(trace)
        stored = first_prompts(trace, plans, root)
        lists = prompts_of(merged)
        routed = tokens_of(merged, prefill=True)
        for q, entry in enumerate(merged.requests):
            assert lists.list_of(q).tolist() == stored.get(entry.id, routed.list_of(q).tolist())
        assert (root / "merged" / PROMPTS).exists() == any(plan["prompts"] for plan in plans)

        merge_traces(trace, root / "scrubbed", scrub=True)
        scrubbed = open_trace(root / "scrubbed")
        assert [(*row[:3], row[4]) for row in rows(scrubbed)] == [(*row[:3], row[4]) for row in rows(trace)]
        assert not any(shard.has_tokens for shard in scrubbed.shards)
        assert not (root / "scrubbed" / PROMPTS).exists()
        if sum(tokens > 0 for tokens in merged.tokens_Q()) > 1:
            write_split(*split_requests(merged, 0.5, seed), root / "parts")
            parts = open_trace([root / "parts" / "train", root / "parts" / "held-out"])
            assert sorted(rows(parts)) == sorted(rows(merged))
            again = prompts_of(parts)
            told = {entry.id: again.list_of(q).tolist() for q, entry in enumerate(parts.requests)}
            kept = [q for q, entry in enumerate(merged.requests) if entry.id in told]
            assert {merged.requests[q].id: lists.list_of(q).tolist() for q in kept} == told


@settings(max_examples=40, deadline=None)
@given(plans=folders(), at=st.sampled_from(["prefill", "0.5"]), decode=st.booleans())
def test_tokens_of_a_cut_are_those_of_a_plain_replay(plans: list[dict[str, Any]], at: str, decode: bool) -> None:
    """In order of positions, without drafts and what is not known, of the kept rows alone."""
    with tempfile.TemporaryDirectory() as name:
        write(Path(name) / "0", plans[0])
        for part in (*cut_requests(open_trace(Path(name) / "0"), at), open_trace(Path(name) / "0")):
            lists = tokens_of(part, prefill=not decode)
            for q, entry in enumerate(part.requests):
                mine = [
                    (position, token)
                    for request, position, phase, token, _ in rows(part)
                    if request == entry.id and phase != DRAFT and (phase > 0) == decode and token >= 0
                ]
                assert lists.list_of(q).tolist() == [token for _, token in sorted(mine, key=lambda one: one[0])]


def test_a_trace_without_ids_is_written_as_before(tmp_path: Path) -> None:
    """No column, no file: traces that never had ids grow by no byte."""
    plan = {"seed": 1, "ids": ["a", "b"], "pieces": [(5, False), (7, False)], "prompts": False, "shard_tokens": 4}
    write(tmp_path / "0", plan)
    assert sorted(path.name for path in (tmp_path / "0").glob("*"))[-1] == "trace.json"
    assert not any(shard.has_tokens for shard in open_trace(tmp_path / "0").shards)
    assert prompts_of(open_trace(tmp_path / "0")).length_Q.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("token", "length", "told"),
    [
        (np.zeros(3, np.int32), np.array([1, 1], np.int32), "add up to 2"),
        (np.zeros(3, np.int32), np.array([3], np.int32), "has 1 numbers"),
        (np.zeros(3, np.int32), np.array([4, -1], np.int32), "add up to 3"),
        (np.zeros(3, np.uint8), np.array([1, 2], np.int32), "dtype I32"),
        (np.zeros((3, 1), np.int32), np.array([1, 2], np.int32), "one axis"),
    ],
)
def test_damaged_prompts_are_refused_with_what_is_wrong(tmp_path: Path, token: Any, length: Any, told: str) -> None:
    plan = {"seed": 1, "ids": ["a", "b"], "pieces": [(5, True)], "prompts": False, "shard_tokens": 4}
    write(tmp_path / "0", plan)
    write_tensors(tmp_path / "0" / PROMPTS, {"token": token, "length": length})
    with pytest.raises(TraceError, match=told):
        prompts_of(open_trace(tmp_path / "0"))
    content = (tmp_path / "0" / PROMPTS).read_bytes()
    (tmp_path / "0" / PROMPTS).write_bytes(content[:-1])
    with pytest.raises(TraceError, match="truncated"):
        prompts_of(open_trace(tmp_path / "0"))


def test_the_command_scrubs(tmp_path: Path) -> None:
    plan = {"seed": 1, "ids": ["a", "b"], "pieces": [(5, True)], "prompts": True, "shard_tokens": 4}
    write(tmp_path / "0", plan)
    done = CliRunner().invoke(app, ["traces", "scrub", str(tmp_path / "0"), "-o", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    assert not any(shard.has_tokens for shard in open_trace(tmp_path / "out").shards)
    assert not (tmp_path / "out" / PROMPTS).exists()
    shutil.rmtree(tmp_path / "out")


def test_the_recorder_writes_ids_only_when_asked(tmp_path: Path) -> None:
    """Every recorded row has the id that the model was fed at its position; padding has none; off unless asked for."""
    torch = pytest.importorskip("torch", reason="torch is not installed")
    transformers = pytest.importorskip("transformers", minversion="5", reason="transformers 5 is not installed")
    from placement.traces.recorder import record

    sizes = {"vocab_size": 60, "hidden_size": 32, "moe_intermediate_size": 16, "intermediate_size": 16}
    config = transformers.AutoConfig.for_model(
        "olmoe", **sizes, num_hidden_layers=2, num_attention_heads=2, num_experts=8, num_experts_per_tok=2
    )
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.generation_config.eos_token_id = None
    ids = torch.randint(3, 60, (2, 6), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[0, :2] = 0
    for asked in (True, False):
        with record(model, tmp_path / str(asked), tokens=asked), torch.no_grad():
            made = model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=4, do_sample=False, pad_token_id=0)
    trace = open_trace(tmp_path / "True")
    prompts, answers = tokens_of(trace, prefill=True), tokens_of(trace, prefill=False)
    for q, begin in enumerate((2, 0)):
        assert prompts.list_of(q).tolist() == ids[q, begin:].tolist()
        assert answers.list_of(q).tolist() == made[q, 6:-1].tolist()
    assert not any(shard.has_tokens for shard in open_trace(tmp_path / "False").shards)
