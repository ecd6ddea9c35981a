"""Outputs that cannot be written are told before the work; what is there already stays as it was."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from refusals import files, refused
from trace_faults import SHARD_FAULTS


@pytest.mark.parametrize("option", ["-o", "--report"])
@pytest.mark.parametrize("bad", ["missing/p.json", "folder", "file/p.json", "x" * 300])
def test_unwritable_output(option: str, bad: str, trace: Any, solve: Any, out: Path) -> None:
    """An output that cannot be written is told before the work, and nothing else is written either."""
    (out / "folder").mkdir()
    (out / "file").write_text("here")
    before = files(out)
    refused(solve(trace.folder, option, out / bad), "cannot write")
    assert files(out) == before
    assert (out / "file").read_text() == "here"


def test_output_is_told_before_the_traces_are_read(solve: Any, out: Path, tmp_path: Path) -> None:
    """Nobody waits for an answer that has nowhere to go: the output is checked first of all."""
    refused(solve(tmp_path / "missing", "-o", out / "no" / "p.json"), "cannot write")


def test_report_over_the_placement(trace: Any, solve: Any, out: Path) -> None:
    """One path for the placement and the report would lose the placement: refused, not overwritten."""
    refused(solve(trace.folder, "--report", out / "p.json"), "p.json")
    refused(solve(trace.folder, "--report", f"{out}/../out/p.json"), "p.json")
    assert files(out) == set()


@pytest.mark.parametrize("option", ["-o", "--report"])
@pytest.mark.parametrize("name", ["trace.json", "shard-00000.safetensors"])
def test_files_of_a_trace_are_not_overwritten(option: str, name: str, trace: Any, solve: Any) -> None:
    """A placement in place of the manifest would lose the trace; beside the trace's files it may stand, and again."""
    before = {path.name: path.read_bytes() for path in trace.folder.iterdir()}
    refused(solve(trace.folder, option, trace.folder / name), f"{name} is a file of the input")
    assert {path.name: path.read_bytes() for path in trace.folder.iterdir()} == before
    for _ in range(2):
        assert solve(trace.folder, "--solver", "linear", "-o", trace.folder / "p.json").code == 0


@pytest.mark.parametrize("bad", ["missing/p.json", "folder", "file/p.json"])
def test_unwritable_export(bad: str, sound_map: Path, run_cli: Any, out: Path) -> None:
    (out / "folder").mkdir()
    (out / "file").write_text("here")
    before = files(out)
    refused(run_cli("export", sound_map, "--to", "native", "-o", out / bad), "cannot write")
    assert files(out) == before


@pytest.mark.parametrize("command", ["split", "merge", "synth"])
def test_folders_are_not_overwritten(command: str, trace: Any, run_cli: Any, out: Path) -> None:
    """Where something is already, the commands on traces write nothing."""
    arguments = {
        "split": (trace.folder,),
        "merge": (trace.folder,),
        "synth": ("--layers", 1, "--experts", 8, "--top-k", 2, "--tokens", 50, "--requests", 2),
    }[command]
    (out / "mine.txt").write_text("mine")
    refused(run_cli("traces", command, *arguments, "-o", out), str(out))
    assert files(out) == {"mine.txt"}


def test_failure_keeps_the_old_output(trace: Any, solve: Any, out: Path) -> None:
    """A placement that is there stays as it was when a later run fails."""
    assert solve(trace.folder).code == 0
    before = (out / "p.json").read_bytes()
    SHARD_FAULTS["id out of range"][0](trace)
    refused(solve(trace.folder, "--seed", 1), "out of range")
    assert (out / "p.json").read_bytes() == before
    assert files(out) == {"p.json"}


def test_in_a_process_of_its_own(trace: Any, run_process: Any, out: Path) -> None:
    """The shell sees the same: the line, the code, no traceback, no file."""
    SHARD_FAULTS["half of it"][0](trace)
    refused(run_process("solve", trace.folder, "--nodes", 2, "-o", "p.json", cwd=out), "shard-00001")
    assert files(out) == set()


def full_for(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """The disk is full for files whose name ends so, as it is when what was written is flushed."""
    make = tempfile.mkstemp

    def mkstemp(*, dir: Path, prefix: str, suffix: str) -> tuple[int, str]:
        if prefix.endswith(f"{ending}."):
            return os.open("/dev/full", os.O_WRONLY), make(dir=dir, prefix=prefix, suffix=suffix)[1]
        return make(dir=dir, prefix=prefix, suffix=suffix)

    monkeypatch.setattr(tempfile, "mkstemp", mkstemp)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("last", [".json", ".html"])
def test_a_full_disk_leaves_placement_and_report_as_they_were(
    last: str, trace: Any, solve: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two tell of one solve: neither is replaced where the other cannot be written."""
    for name in ("p.json", "r.html"):
        (out / name).write_text("old")
    full_for(monkeypatch, last)
    refused(solve(trace.folder, "--report", out / "r.html"), "No space left on device", "free some space")
    assert {path.name: path.read_text() for path in out.iterdir()} == {"p.json": "old", "r.html": "old"}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
@pytest.mark.parametrize("last", ["e.json", ".flags.txt"])
def test_a_full_disk_leaves_no_map_without_its_flags(
    last: str, sound_map: Path, run_cli: Any, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_for(monkeypatch, last)
    refused(run_cli("export", sound_map, "--to", "sglang", "-o", out / "e.json"), "free some space")
    assert files(out) == set()
