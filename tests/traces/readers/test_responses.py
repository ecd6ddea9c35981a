"""Responses as servers and their clients log them: every form of `routed_experts`, and what has none."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from placement.analysis.watch.follower import Follower
from placement.cli import main
from placement.errors import TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import Conversion, convert
from placement.traces.trace import open_trace

Array = npt.NDArray[Any]
LAYERS, EXPERTS, TOP_K = 3, 12, 4
PROMPT, ANSWER = 7, 5
ROWS = PROMPT + ANSWER - 1  # the last token has none


def routed(seed: int = 0, rows: int = ROWS) -> Array:
    """Sets [rows, L, K] of different experts, of which every expert has its turn."""
    return np.argsort(np.random.default_rng(seed).random((rows, LAYERS, EXPERTS)), axis=2)[:, :, :TOP_K]


def npy(array: Array) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return base64.b64encode(buffer.getvalue()).decode()


def usage(prompt: int = PROMPT, answer: int = ANSWER) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def vllm(name: str, value: Any, **other: Any) -> dict[str, Any]:
    """A response of the OpenAI server; `other` replaces keys of it, and None takes them away."""
    choice = {"index": 0, "text": "", "finish_reason": "stop", "routed_experts": value}
    found = {"id": name, "choices": [choice], "usage": usage()} | other
    return {key: value for key, value in found.items() if value is not None}


def sglang(name: str, array: Array | None, **other: Any) -> dict[str, Any]:
    meta = {"id": name, "prompt_tokens": PROMPT, "completion_tokens": ANSWER}
    meta["routed_experts"] = None if array is None else base64.b64encode(array.tobytes()).decode()
    return {"text": "", "meta_info": meta | other}


def logged(folder: Path, *documents: Any, name: str = "responses.jsonl") -> Path:
    """A file with a line for each document; text is written as it is."""
    lines = [one if isinstance(one, str) else json.dumps(one) for one in documents]
    (folder / name).write_text("".join(f"{line}\n" for line in lines))
    return folder / name


def read(path: Path, **options: Any) -> tuple[Conversion, dict[str, list[tuple[int, int, Any]]]]:
    """The conversion, and (position, phase, sets) of every token of each request."""
    done = convert(path, path.parent / f"out-{len(list(path.parent.iterdir()))}", options=ReadOptions(**options))
    trace = open_trace(done.output)
    found: dict[str, list[tuple[int, int, Any]]] = {one.id: [] for one in trace.requests}
    for block in trace.blocks():
        ids_TLK = np.stack([block.ids_TK(layer) for layer in range(trace.model.num_layers)], axis=1)
        columns = (block.request_T, block.column_T("position"), block.column_T("phase"), ids_TLK)
        for request, *token in zip(*(column.tolist() for column in columns), strict=True):
            found[trace.requests[request].id].append((token[0], token[1], token[2]))
    return done, found


def tokens(array: Array, prompt: int = PROMPT, start: int = 0) -> list[tuple[int, int, Any]]:
    return [(at, int(at >= prompt), ids.tolist()) for at, ids in enumerate(array, start=start)]


def payload(array: Array, encode: Callable[[bytes], bytes] = base64.b64encode, **other: Any) -> dict[str, Any]:
    return {"data": encode(array.tobytes()).decode(), "shape": list(array.shape)} | other


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


ABORTED = vllm("x", None, choices=[{"index": 0, "finish_reason": "abort", "routed_experts": None}])
FAILURES = [
    {"error": {"message": "too long", "type": "BadRequestError", "code": 400}},
    {"object": "error", "message": "gone", "code": 500},
    {"detail": "Not Found"},
]
WITHOUT = {
    "aborted": ([ABORTED], "1 response without routed_experts left out (responses.jsonl: line 2)"),
    "two aborted": ([ABORTED, ABORTED], "2 responses without routed_experts left out (the first: responses.jsonl: l"),
    "no choices": ([vllm("x", None, choices=[])], "1 response without routed_experts left out"),
    "no rows": ([vllm("x", npy(routed(rows=0)))], "1 response without routed_experts left out"),
    "null": ([None], "1 response without routed_experts left out"),
    "an error of HTTP": (FAILURES[:1], "1 error of the server left out (responses.jsonl: line 2)"),
    "errors of HTTP": (FAILURES, "3 errors of the server left out (the first: responses.jsonl: line 2)"),
    "text": (["Internal Server Error"], "1 line that is no JSON left out (responses.jsonl: line 2)"),
    "cut off": (['{"id": "x", "choi'], "1 line that is no JSON left out"),
    "empty lines": (["", " "], "2 empty lines left out (the first: responses.jsonl: line 2)"),
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("case", WITHOUT)
def test_what_has_no_routing_is_counted(case: str, first: bool, tmp_path: Path) -> None:
    """A log of traffic has responses that failed; the others are read, and the note says how many are missing."""
    documents, note = WITHOUT[case]
    good = [vllm("a", npy(routed())), vllm("b", npy(routed(1)))]
    path = logged(tmp_path, *(documents + good if first else [good[0], *documents, good[1]]))
    done, found = read(path)
    assert found == {"a": tokens(routed()), "b": tokens(routed(1))}
    assert any((note.split(" (")[0] if first else note) in one for one in done.notes)


@pytest.mark.parametrize("case", WITHOUT)
def test_the_flag_is_advised_where_nothing_is_left(case: str, tmp_path: Path) -> None:
    """Only a log without a single row is refused, in one line with what it has."""
    documents, note = WITHOUT[case]
    with pytest.raises(TraceError, match=r"no response with routed_experts: .*--enable-return-routed-exp") as error:
        convert(logged(tmp_path, *documents), tmp_path / "out", reader="vllm")
    assert "\n" not in str(error.value) and (case == "null" or note.split(" left")[0] in str(error.value))


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


@pytest.mark.parametrize("first", [False, True])
def test_what_sglang_did_not_answer_is_counted(first: bool, tmp_path: Path) -> None:
    """Aborted, failed and empty: as of vLLM."""
    good = sglang("a", routed().astype("<i4"))
    aborted = sglang("x", None, finish_reason={"type": "abort", "message": "cancelled"}, completion_tokens=0)
    gone = {"text": "", "meta_info": {"id": "y", "finish_reason": {"type": "abort"}}}
    rest = [aborted, gone, *FAILURES[:2], "Service Unavailable", ""]
    done, found = read(logged(tmp_path, *([*rest, good] if first else [good, *rest])), top_k=TOP_K)
    assert found == {"a": tokens(routed())}
    told = [note.split(" left out")[0] for note in done.notes]
    assert told[:4] == [
        "2 responses without routed_experts",
        "2 errors of the server",
        "1 line that is no JSON",
        "1 empty line",
    ]
    with pytest.raises(TraceError, match=r"routed_experts: 2 responses without .*, 2 errors .*; start SGLang with"):
        convert(logged(tmp_path, *rest), tmp_path / "none", reader="sglang-responses", options=ReadOptions(top_k=4))


def test_sglang_of_which_the_first_response_lacks_rows(tmp_path: Path) -> None:
    """Most of the first responses tell how wide a row is, not the very first; of a single one nothing is guessed."""
    cut = sglang("cut", routed(rows=4).astype("<i4"))
    good = [sglang(f"{seed}", routed(seed).astype("<i4")) for seed in range(3)]
    _, found = read(logged(tmp_path, cut, *good), top_k=TOP_K)
    assert found == {"cut": tokens(routed(rows=4), start=7), **{f"{seed}": tokens(routed(seed)) for seed in range(3)}}
    with pytest.raises(TraceError, match="48 ids do not make 11 rows"):
        convert(
            logged(tmp_path, sglang("b", routed(rows=4).astype("<i4"))), tmp_path / "no", options=ReadOptions(top_k=4)
        )


def test_watch_reads_what_convert_reads(tmp_path: Path) -> None:
    """The follower of a folder takes the good responses of a log, and passes on what was left out."""
    folder = tmp_path / "arrivals"
    folder.mkdir()
    documents = [vllm(f"{seed}", npy(routed(seed))) for seed in range(5)]
    path = logged(folder, *documents, ABORTED, FAILURES[0])
    model = convert(path, tmp_path / "out", options=ReadOptions(num_experts=EXPERTS)).model
    found = list(Follower(folder, model).poll(settled=True))
    assert [one.error for one in found] == [None]
    assert found[0].workload is not None and found[0].workload.num_tokens == 5 * ROWS
    assert [note.split(" left out")[0] for note in found[0].notes] == [
        "1 response without routed_experts",
        "1 error of the server",
    ]


def test_the_command_watch_says_what_was_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Below the line of the file; as `notes` of the event where events are JSON."""
    folder = tmp_path / "arrivals"
    folder.mkdir()
    path = logged(folder, *(vllm(f"{seed}", npy(routed(seed))) for seed in range(5)), ABORTED)
    convert(path, tmp_path / "out", options=ReadOptions(num_experts=EXPERTS))

    def run(*arguments: str | Path) -> str:
        with pytest.raises(SystemExit):
            main([*map(str, arguments)])
        return capsys.readouterr().out

    used, proposals = tmp_path / "map.json", tmp_path / "proposals"
    cluster = ("--nodes", "2", "--gpus-per-node", "1")
    run("solve", tmp_path / "out", *cluster, "--solver", "linear", "--holdout", "0", "-o", used)
    watch = ("watch", folder, "--from", used, "--once", "-o", proposals)
    assert "\n  note: 1 response without routed_experts left out (responses.jsonl: line 6)" in run(*watch)
    event = json.loads(run(*watch, "--json").splitlines()[0])
    assert event["event"] == "read" and event["notes"][0].startswith("1 response without routed_experts")
