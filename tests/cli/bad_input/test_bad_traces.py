"""Traces that are broken, empty or none end in one clear line and exit code 2, and no file appears."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from refusals import files, refused
from trace_faults import MANIFEST_FAULTS, SHARD_FAULTS


@pytest.mark.parametrize("fault", SHARD_FAULTS)
def test_bad_shard(fault: str, trace: Any, solve: Any, out: Path, run_cli: Any, sound_map: Path) -> None:
    """A shard that is not as the format says: told by solve and by evaluate, and no file appears."""
    edit, told = SHARD_FAULTS[fault]
    edit(trace)
    before = files(out.parent)
    refused(solve(trace.folder), *told)
    refused(solve(trace.folder, "--json", "--holdout", 0), *told)
    assert files(out.parent) == before
    refused(run_cli("evaluate", trace.folder, "--map", sound_map), *told)


@pytest.mark.parametrize("command", ["info", "split", "merge"])
@pytest.mark.parametrize("fault", ["half of it", "id out of range", "twice in a set", "request beyond the list"])
def test_bad_shard_in_the_traces_commands(fault: str, command: str, trace: Any, out: Path, run_cli: Any) -> None:
    """The commands on traces refuse it too, and leave no half-made trace behind."""
    edit, told = SHARD_FAULTS[fault]
    edit(trace)
    output = ["--report", out / "new.html"] if command == "info" else ["-o", out / "new"]
    refused(run_cli("traces", command, trace.folder, *output), *told)
    assert files(out) == set()


@pytest.mark.parametrize("fault", MANIFEST_FAULTS)
def test_bad_manifest(fault: str, trace: Any, solve: Any, out: Path) -> None:
    """A manifest that is broken or disagrees with its shards is told by the key, and no file appears."""
    edit, told = MANIFEST_FAULTS[fault]
    edit(trace)
    refused(solve(trace.folder), *told)
    assert files(out) == set()


def test_empty_traces(tmp_path: Path, write_trace: Any, solve: Any, out: Path) -> None:
    """No shards, shards of no tokens, and no requests: each is called empty."""
    nothing = write_trace(tmp_path / "a", tokens=0, requests=0)
    refused(solve(nothing.folder), "empty", "no tokens")
    nothing.shards[0].unlink()
    refused(solve(nothing.folder), "empty", "no tokens")
    refused(solve(write_trace(tmp_path / "b", tokens=0, requests=3, num_shards=2).folder), "empty", "no tokens")
    assert files(out) == set()


def test_one_request_cannot_be_split(tmp_path: Path, write_trace: Any, solve: Any, out: Path) -> None:
    """A holdout needs two requests with tokens; the way out is named and works."""
    folder = write_trace(tmp_path / "t", requests=1).folder
    refused(solve(folder), "--holdout 0")
    assert files(out) == set()
    assert solve(folder, "--holdout", 0).code == 0


def test_folders_that_are_no_traces(tmp_path: Path, trace: Any, solve: Any, out: Path) -> None:
    """Paths that do not exist, hold no trace, match nothing, or come twice."""
    refused(solve(tmp_path / "missing"), "missing", "does not exist")
    refused(solve(tmp_path / "mis*"), "does not exist")
    refused(solve(tmp_path / ("x" * 300)), "xxx")
    refused(solve(out), "trace.json")
    refused(solve(trace.shards[0]), "is a file")
    refused(solve(trace.folder, trace.folder), "twice")
    refused(solve(trace.folder, f"{trace.folder}/../trace"), "twice")
    assert files(out) == set()


def test_traces_of_two_models(tmp_path: Path, trace: Any, write_trace: Any, solve: Any, out: Path) -> None:
    other = write_trace(tmp_path / "other", num_experts=16)
    refused(solve(trace.folder, other.folder), "another model", "num_experts=16")
    assert files(out) == set()
