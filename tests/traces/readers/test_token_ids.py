"""Ids of tokens in recordings: at their rows, left out where they cannot be right, told of, gone after a scrub."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pytest
import torch
from pyarrow import parquet

from placement.errors import TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import Conversion, convert
from placement.traces.prompts import prompts_of, tokens_of
from placement.traces.trace import open_trace
from placement.traces.write import merge_traces

LAYERS, EXPERTS, TOP_K, PROMPT, ANSWER = 2, 12, 4, 7, 5
ROWS = PROMPT + ANSWER - 1  # the last token has none
ASKED, GIVEN = list(range(100, 100 + PROMPT)), list(range(200, 200 + ANSWER))
SETS = np.argsort(np.random.default_rng(0).random((ROWS, LAYERS, EXPERTS)), axis=2)[:, :, :TOP_K]


def npy(array: Any) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def vllm(rows: Any = SETS, **other: Any) -> dict[str, Any]:
    choice = {"routed_experts": npy(rows.astype("u1")), "token_ids": GIVEN} | other
    return {"id": "a", "choices": [choice], "prompt_token_ids": choice.pop("asked", ASKED)}


def sglang(rows: Any = SETS, **other: Any) -> dict[str, Any]:
    meta = {"id": "a", "prompt_tokens": PROMPT, "completion_tokens": ANSWER}
    meta["routed_experts"] = base64.b64encode(rows.astype("<i4").tobytes()).decode()
    return {"meta_info": meta, "prompt_token_ids": ASKED, "output_ids": GIVEN} | other


def converted(tmp_path: Path, *documents: dict[str, Any]) -> tuple[Conversion, list[int], list[int]]:
    """The conversion of responses; the known ids of the first one's prompt, and of its answer."""
    path = tmp_path / "responses.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in documents))
    reader = "vllm" if "meta_info" not in documents[0] and "sglext" not in documents[0] else "sglang-responses"
    done = convert(path, tmp_path / "out", reader=reader, options=ReadOptions(top_k=TOP_K))
    trace = open_trace(done.output)
    return done, prompts_of(trace).list_of(0).tolist(), tokens_of(trace, prefill=False).list_of(0).tolist()


@pytest.mark.parametrize("server", [vllm, sglang])
def test_ids_lie_at_their_rows_and_a_scrub_takes_them_away(server: Any, tmp_path: Path) -> None:
    done, asked, given = converted(tmp_path, server())
    assert (asked, given) == (ASKED, GIVEN[:-1])
    assert f"ids of {ROWS} tokens kept: they are content" in str(done.notes)
    merge_traces(open_trace(done.output), tmp_path / "scrubbed", scrub=True)
    scrubbed = open_trace(tmp_path / "scrubbed")
    assert not any(shard.has_tokens for shard in scrubbed.shards)
    assert not prompts_of(scrubbed).length_Q.any()


@pytest.mark.parametrize("server", [vllm, sglang])
@pytest.mark.parametrize("missing", [1, PROMPT])
def test_a_prompt_of_which_rows_are_lacking_is_kept_whole(server: Any, missing: int, tmp_path: Path) -> None:
    """A cached prefix runs on no expert: its ids have no rows, and the router still learns from the prompt."""
    other = {"prompt_tokens": PROMPT, "completion_tokens": ANSWER, "id": "whole"}
    whole = vllm() if server is vllm else sglang(meta_info=sglang()["meta_info"] | other)
    done, asked, given = converted(tmp_path, server(SETS[missing:]), whole | {"id": "whole"})
    assert (asked, given) == (ASKED, GIVEN[:-1])
    assert "and 1 prompts that lack rows" in str(done.notes)


def test_chat_choices_of_sglang_have_ids_too(tmp_path: Path) -> None:
    meta = sglang()["meta_info"]
    choice = {"prompt_token_ids": ASKED, "response_token_ids": GIVEN}
    usage = {"prompt_tokens": PROMPT, "completion_tokens": ANSWER}
    document = {"id": "a", "choices": [choice], "usage": usage, "sglext": {"routed_experts": meta["routed_experts"]}}
    assert converted(tmp_path, document)[1:] == (ASKED, GIVEN[:-1])


def test_completions_of_vllm_have_the_ids_of_the_prompt_at_the_choice(tmp_path: Path) -> None:
    assert converted(tmp_path, vllm(asked=None, prompt_token_ids=ASKED))[1:] == (ASKED, GIVEN[:-1])


def test_placeholders_are_no_ids(tmp_path: Path) -> None:
    """Images stand in a prompt as numbers beyond every vocabulary, or below 0."""
    asked = [*ASKED[:-2], -5, 2**40]
    assert converted(tmp_path, sglang(prompt_token_ids=asked))[1] == [*asked[:-2]]


def test_lists_of_another_length_are_left_out_and_told_of(tmp_path: Path) -> None:
    """Which of the ids are missing cannot be known: none is taken."""
    done, asked, given = converted(tmp_path, sglang(output_ids=GIVEN[:-1]))
    assert (asked, given) == (ASKED, [])
    assert "1 list of ids left out" in str(done.notes)


@pytest.mark.parametrize("bad", [["a"], [1.5], [[1], [2, 3]], "text", {"a": 1}, [None]])
@pytest.mark.parametrize("server", [vllm, sglang])
def test_what_is_no_list_of_ids_is_refused(server: Any, bad: Any, tmp_path: Path) -> None:
    document = vllm(asked=bad) if server is vllm else sglang(prompt_token_ids=bad)
    with pytest.raises(TraceError, match="ids of the prompt is no list of whole numbers"):
        converted(tmp_path, document)


def dump(tmp_path: Path, **other: Any) -> Path:
    ids = torch.full((LAYERS, ROWS, 8), -1, dtype=torch.int32)
    ids[:, :, :TOP_K] = torch.tensor(SETS.transpose(1, 0, 2))
    record = {"forward_pass_id": 0, "forward_mode": 1, "positions": list(range(ROWS)), "extend_seq_lens": [ROWS]}
    record |= {"topk_ids_of_layer": ids, "input_ids": list(range(50, 50 + ROWS))} | other
    slots = torch.arange(EXPERTS)[None].repeat(LAYERS, 1)
    path = tmp_path / "expert_distribution_recorder_1_0.pt"
    torch.save({"records": [record], "last_physical_to_logical_map": slots}, path)
    return path


def test_a_dump_of_sglang_may_have_no_ids(tmp_path: Path) -> None:
    done = convert(dump(tmp_path, input_ids=None), tmp_path / "out")
    assert not any(shard.has_tokens for shard in open_trace(done.output).shards)
    assert "content" not in str(done.notes)


@pytest.mark.parametrize("bad", [[1, 2], ["a"] * ROWS])
def test_a_dump_with_other_ids_than_tokens_is_refused(bad: Any, tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="input_ids"):
        convert(dump(tmp_path, input_ids=bad), tmp_path / "out")


def test_columns_of_wrong_types_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", expert_ids=SETS, token=np.full(ROWS, 0.5))
    with pytest.raises(TraceError, match="token has shape"):
        convert(tmp_path / "a.npz", tmp_path / "out")
    table = pyarrow.table({"expert_ids": SETS.tolist(), "token": [0.5] * ROWS})
    parquet.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(TraceError, match="token has dtype float64"):
        convert(tmp_path / "b.parquet", tmp_path / "out")


def test_a_column_of_parquet_may_lack_ids(tmp_path: Path) -> None:
    table = pyarrow.table({"expert_ids": SETS.tolist(), "token": [None, *range(1, ROWS)]})
    parquet.write_table(table, tmp_path / "b.parquet")
    trace = open_trace(convert(tmp_path / "b.parquet", tmp_path / "out").output)
    assert next(trace.blocks()).column_T("token").tolist() == [-1, *range(1, ROWS)]
