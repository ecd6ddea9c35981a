"""Every form in which servers answer routed experts is read alike."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_responses import (
    ABORTED,
    ANSWER,
    EXPERTS,
    LAYERS,
    PROMPT,
    ROWS,
    TOP_K,
    logged,
    npy,
    payload,
    read,
    routed,
    sglang,
    tokens,
    usage,
    vllm,
)

from placement.errors import TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import convert


@pytest.mark.parametrize("dtype", ["u1", "u2", "<i2", ">i4", "<i4", "<i8"])
def test_whole_numbers_of_any_size(dtype: str, tmp_path: Path) -> None:
    """Versions differ in the type of ids; the ids do not."""
    array = routed().astype(dtype)
    _, found = read(logged(tmp_path, vllm("a", npy(array)), vllm("b", payload(array, dtype=array.dtype.str))))
    assert found == {"a": tokens(routed()), "b": tokens(routed())}


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(payload(routed().astype("u1")), id="a byte an id, dtype not told"),
        pytest.param(payload(routed().astype("<i2")), id="two bytes an id, dtype not told"),
        pytest.param(payload(routed().astype("u1"), base64.b85encode), id="base85"),
        pytest.param(payload(routed().astype("<i4"), dtype="torch.int32", start=0), id="start"),
        pytest.param(routed().tolist(), id="nested lists"),
    ],
)
def test_forms_of_other_servers(value: Any, tmp_path: Path) -> None:
    """What forks and routers make of the array is the same array."""
    done, found = read(logged(tmp_path, vllm("a", value)))
    assert found == {"a": tokens(routed())} and "left out" not in str(done.notes)


def test_a_payload_says_where_it_starts(tmp_path: Path) -> None:
    """`start` is the position of the first row, also where nothing tells how many tokens there are."""
    value = payload(routed()[3:].astype("u1"), dtype="uint8", start=3)
    choice = {"routed_experts": value, "token_ids": list(range(ANSWER))}
    done, found = read(logged(tmp_path, vllm("a", value), vllm("b", None, choices=[choice], usage=None)))
    assert found == {name: tokens(routed()[3:], start=3) for name in "ab"}
    assert "6 tokens of prompts have no rows" in str(done.notes)


def test_prompts_apart(tmp_path: Path) -> None:
    """vLLM 0.21: the prompt's rows are the response's, the choices have the answers alone, however many they are."""
    prompt, answer, other = routed()[:PROMPT], routed()[PROMPT:], routed(1)[PROMPT:]
    choices = [{"index": at, "routed_experts": npy(one)} for at, one in enumerate((answer, other))]
    apart = {"prompt_routed_experts": npy(prompt)}
    path = logged(
        tmp_path,
        vllm("one", npy(answer), **apart),
        vllm("told by ids", npy(answer), **apart, usage=None),
        vllm("no answer", None, **apart, usage=usage(answer=1)),
        vllm("two", None, **apart, choices=choices, usage=usage(answer=2 * ANSWER)),
        vllm("both", npy(routed()), **apart),
    )
    _, found = read(path)
    assert found == {
        "one": tokens(routed()),
        "told by ids": tokens(routed()),
        "no answer": tokens(prompt),
        "two/0": tokens(routed()),
        "two/1": tokens(other, start=PROMPT),
        "both": tokens(routed()),
    }


def test_prompts_that_have_no_rows_are_told(tmp_path: Path) -> None:
    """The answer alone is decode, and the note counts what is not there."""
    done, found = read(logged(tmp_path, *(vllm(name, npy(routed()[PROMPT:])) for name in "ab")))
    assert found == {name: tokens(routed()[PROMPT:], start=PROMPT) for name in "ab"}
    assert f"{2 * PROMPT} tokens of prompts have no rows (the first: responses.jsonl: line 1)" in done.notes


def test_the_generate_endpoint(tmp_path: Path) -> None:
    """/inference/v1/generate has no usage: the prompt is what the rows leave of the answer's tokens."""
    choice = {"index": 0, "token_ids": list(range(ANSWER)), "routed_experts": npy(routed())}
    plain = {"request_id": "a", "choices": [choice], "prompt_logprobs": None}
    told = plain | {"request_id": "b", "prompt_token_ids": list(range(PROMPT))}
    short = plain | {"request_id": "c", "choices": [choice | {"token_ids": list(range(ROWS + 1))}]}
    _, found = read(logged(tmp_path, plain, told, short))
    assert found == {"a": tokens(routed()), "b": tokens(routed()), "c": tokens(routed(), prompt=0)}


def test_a_prompt_that_nothing_tells(tmp_path: Path) -> None:
    """Without usage and without tokens all rows are called prefill, and a note says so."""
    done, found = read(logged(tmp_path, vllm("a", npy(routed()), usage=None)))
    assert found == {"a": tokens(routed(), prompt=ROWS)}
    assert any("1 response does not say where its prompt ends" in note for note in done.notes)


def test_a_document_of_many_lines_and_a_log_that_ends_in_json(tmp_path: Path) -> None:
    """A `.json` is one document, or lines of which the first may have failed."""
    document = [vllm("a", npy(routed())), ABORTED]
    (tmp_path / "whole.json").write_text(json.dumps(document, indent=1))
    done, found = read(tmp_path / "whole.json")
    assert found == {"a": tokens(routed())} and "1 response without" in str(done.notes)
    done, found = read(logged(tmp_path, "Bad Gateway", vllm("a", npy(routed())), name="lines.json"))
    assert found == {"a": tokens(routed())} and "1 line that is no JSON" in str(done.notes)


@pytest.mark.parametrize("name", ["config.json", "m.json", "prompts.jsonl", "zz-meta_info.json"])
def test_files_about_a_recording(name: str, tmp_path: Path) -> None:
    """A configuration beside arrays or responses is no fault: it is named, wherever its name sorts."""
    arrays, answers = tmp_path / "arrays", tmp_path / "answers"
    for folder in (arrays, answers):
        folder.mkdir()
        (folder / name).write_text(json.dumps({"model_type": "tiny", "num_experts": EXPERTS}) + "\n")
    np.save(arrays / "request.npy", routed().astype("u1"))
    logged(answers, vllm("a", npy(routed())))
    for folder in (arrays, answers):
        done, _ = read(folder)
        assert done.reader == "vllm" and done.num_tokens == ROWS
        assert f"{name} left out: it holds no responses" in done.notes


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (payload(routed().astype("u1"), dtype="uint16"), "data are not 132 ids of shape"),
        (payload(routed().astype("u1"), shape=[ROWS, LAYERS]), r"shape \[11, 3\]"),
        (payload(routed().astype("f4"), dtype="float32"), "dtype is 'float32', which is no type of whole numbers"),
        (payload(routed().astype("u1"), dtype={"names": []}), "dtype is {'names'"),
        (payload(routed().astype("u1"), dtype="(2"), "dtype is '"),
        ({"shape": [1, 1, 1]}, "'data'"),
        ([[1, 2], [3]], "routed_experts|inhomogeneous"),
        (7, r"shape \[\]"),
        (base64.b64encode(b"no array").decode(), "magic string"),
    ],
)
def test_unknown_forms_name_those_that_are_read(value: Any, match: str, tmp_path: Path) -> None:
    """Another version may have another form: the error says which are read, in which versions."""
    with pytest.raises(TraceError, match=match) as error:
        convert(logged(tmp_path, vllm("a", value)), tmp_path / "out", reader="vllm")
    assert "vLLM 0.22 to 0.33" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", ["int32", "int16", "uint16", "uint8"])
def test_sglang_names_its_dtype(dtype: str, tmp_path: Path) -> None:
    """`routed_experts_dtype` is in what holds the ids, of /generate and of the OpenAI endpoints."""
    plain = sglang("a", routed().astype(dtype), routed_experts_dtype=dtype)
    extra = {key: value for key, value in plain["meta_info"].items() if key.startswith("routed")}
    path = logged(tmp_path, plain, {"id": "b", "choices": [], "usage": usage(), "sglext": extra})
    _, found = read(path, top_k=TOP_K)
    assert found == {"a": tokens(routed()), "b": tokens(routed())}


@pytest.mark.parametrize("dtype", ["bfloat16", {"a": 1}])
def test_sglang_of_an_unknown_dtype(dtype: Any, tmp_path: Path) -> None:
    """Nothing is read as if it were int32."""
    good = sglang("a", routed().astype("<i4"))
    path = logged(tmp_path, good, sglang("b", routed().astype("<f4"), routed_experts_dtype=dtype))
    with pytest.raises(TraceError, match=r"line 2: .*; forms that are read: the base64 of int32, int16"):
        convert(path, tmp_path / "out", options=ReadOptions(top_k=TOP_K))
