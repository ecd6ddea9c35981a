"""Scripts refuse what they cannot read in a line, while their arguments are parsed, and never by a traceback."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from bench_scripts import BENCHMARKS, EXAMPLES, SCRIPTS, Argument, arguments, before, refusal, with_kinds

# what each type must refuse; `room` makes the files and folders
BAD = {
    "input_trace": ("absent", "text", "empty", "broken"),
    "input_recording": ("absent", "text", "empty", "broken", "absent.json", "text.json"),
    "input_case": ("absent:4x8:0", "broken:4x8:0", "text.npz:4x8:0", "broken:4x8", "broken:4:0", "broken:0x1:0"),
    "input_trace_case": ("absent:4x8:0", "text.npz:4x8:0"),
    "input_texts": ("absent", "text", "empty", "other.npz"),
    "input_result": ("absent", "text", "empty", "text.json"),
    "input_file": ("absent", "empty"),
    "input_folder": ("absent", "text"),
    "input_model": ("absent", "text", "empty"),
    "checkout": ("absent", "text", "empty"),
}
# what these read of sys.argv comes from a script that starts them
STARTED = {"convert.py", "out_of_core.py", "overhead.py", "network_rank.py", "homes_model_rank.py", "strangers.py"}


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the scripts are run in, with a file and folders that are no trace, no model and no checkout."""
    for name in ("text", "text.json", "text.npz"):
        (tmp_path / name).write_text("no arrays\n")
    np.savez(tmp_path / "other.npz", token_ids=np.zeros(1))
    for name in ("empty", "broken"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "trace.json").write_text('{"schema": "expert-trace/1"')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(("path", "argument"), with_kinds(*BAD))
def test_a_bad_input_is_refused_before_the_work(
    path: Path, argument: Argument, room: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch
) -> None:
    words = before(path, argument, tmp_path_factory.mktemp("good"))
    for bad in BAD[argument.kind]:
        said = refusal(path, [*words, *argument.given(bad)], monkeypatch)
        assert bad.split(":")[0] in said, said


def test_every_argument_of_a_benchmark_has_a_type_that_refuses() -> None:
    """Protects the test above: a script that names a trace in another way would end in a traceback unseen."""
    for path in (one for one in SCRIPTS if one.is_relative_to(BENCHMARKS)):
        for one in arguments(path):
            assert one.kind != "Path", f"{path}: {one.name} does not say whether it is read or written"
            assert one.kind or one.choices or not one.positional, f"{path}: {one.name} has no type"
        assert path.name in STARTED or "argv" not in path.read_text().replace("sys.argv[0]", ""), path


def test_an_error_within_the_work_is_a_line(capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    """A cluster that does not fit the trace is seen only when both are there."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from machine import run_script

    from placement import Cluster

    with pytest.raises(SystemExit) as stop:
        run_script(lambda: Cluster.fit(30, num_nodes=4, gpus_per_node=2, redundant_experts=0))
    assert stop.value.code == 3
    assert "cannot be shared evenly" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("train_tiny_moe.py", ["-o", "out", "--texts", "absent"]),
        ("train_tiny_moe.py", ["-o", "out", "--record-only"]),
        ("serve_two_nodes.py", ["serve", "absent"]),
        ("serve_two_nodes.py", ["prepare", "new", "--model", "absent"]),
    ],
)
def test_an_example_refuses_what_it_cannot_read(script: str, words: list[str], room: Path, monkeypatch) -> None:
    said = refusal(EXAMPLES / script, words, monkeypatch)
    assert any(word in said for word in ("absent", "out")), said
    assert not (room / "out").exists() and not (room / "new").exists()
