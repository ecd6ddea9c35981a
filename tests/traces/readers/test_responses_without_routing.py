"""Responses that lack routed experts are left out and counted, by `convert` and by `watch`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from served_responses import ABORTED, EXPERTS, ROWS, TOP_K, logged, npy, read, routed, sglang, tokens, vllm

from placement.analysis.watch.follower import Follower
from placement.cli import main
from placement.errors import TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import convert

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
