"""`placement traces ...`: what goes to stdout and stderr, exit codes, and that nothing is overwritten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from placement.cli import main
from placement.traces.trace import open_trace


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    code = 0
    try:
        main(["traces", *map(str, arguments)])
    except SystemExit as end:
        code = int(end.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    shape = ("--layers", "30", "--experts", "8", "--top-k", "2")
    code, out, err = run(capsys, "synth", *shape, "--tokens", "300", "--requests", "10", "-o", tmp_path / "t")
    assert (code, out, err) == (0, f"wrote {tmp_path / 't'}: 300 tokens\n", "")
    return tmp_path / "t"


def test_json_is_one_document_and_nothing_else(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "info", trace, "--json")
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert document["num_tokens"] == 300
    assert len(document["layers"]) == 30
    code, out, err = run(capsys, "split", trace, "-o", trace.parent / "s", "--json")
    assert (code, err) == (0, "")
    assert set(json.loads(out)) == {"train", "held-out"}


def test_layers_are_rows_only_when_asked_for(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short, long = run(capsys, "info", trace)[1], run(capsys, "info", trace, "--layers")[1]
    assert "no router weights" in short
    assert len(short.splitlines()) < 40 < len(long.splitlines())
    assert max(map(len, long.splitlines())) <= 100


def test_split_writes_train_and_held_out_and_merge_puts_them_together(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts, merged = trace.parent / "s", trace.parent / "m"
    code, out, _ = run(capsys, "split", trace, "--holdout", "0.3", "-o", parts)
    assert code == 0
    assert [line.split(":")[0] for line in out.splitlines()] == [f"wrote {parts}/train", f"wrote {parts}/held-out"]
    assert len(open_trace(parts / "held-out").requests) == 3
    assert run(capsys, "merge", parts / "train", parts / "held-out", "-o", merged)[0] == 0
    assert open_trace(merged).num_tokens_stored == 300


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("info", "{}/missing"), "does not exist"),
        (("split", "{}/t", "--holdout", "1.5", "-o", "{}/s"), "holdout=1.5 must be between 0 and 1"),
        (("merge", "{}/t", "-o", "{}/t"), "nothing is overwritten"),
        (("merge", "{}/t", "-o", "{}/no/m"), "cannot write"),
        (("synth", "-o", "{}/s"), "the model's shape is missing"),
        (("synth", "--preset", "nope", "-o", "{}/s"), "preset 'nope' is unknown"),
        (("synth", "--preset", "olmoe", "--top-k", "2", "-o", "{}/s"), "give either"),
        (("synth", "--preset", "olmoe", "--tokens", "5", "-o", "{}/s"), "tokens=5 must be at least requests=400"),
    ],
)
def test_errors_are_one_line_and_exit_code_2(
    trace: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], told: str
) -> None:
    code, out, err = run(capsys, *(argument.format(trace.parent) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("placement: error: ")
    assert told in err
    assert [path.name for path in trace.parent.iterdir()] == ["t"]
