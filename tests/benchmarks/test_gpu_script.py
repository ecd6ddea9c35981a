"""The script for a machine with one GPU: what it says of each step, and its exit code."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "runtime" / "gpu.sh"
MOST_SECONDS = 8 * 60
PYTHON = """#!/bin/sh
case "$1" in
    -c) echo "$GPU" ;;
    -m) exit "${TESTS:-0}" ;;
    *kernels.py) exit "${KERNELS:-0}" ;;
esac
"""


def run(folder: Path, *words: str, **environment: str) -> tuple[int, str, list[list[str]]]:
    """Exit code, what was printed, and the rows of the last table, with a Python that only says how steps end."""
    fake = folder / "python"
    fake.write_text(PYTHON)
    fake.chmod(0o755)
    done = subprocess.run(
        ["bash", str(SCRIPT), *words],
        env=os.environ | {"PYTHON": str(fake), "GPU": "", **environment},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    rows = re.findall(r"^\| (.+) \|$", done.stdout.partition("## Steps")[2], re.MULTILINE)
    return done.returncode, done.stdout + done.stderr, [row.split(" | ") for row in rows[1:]]


def test_without_a_gpu_all_is_skipped(tmp_path: Path) -> None:
    """To its end: 77, and each step says so; the limits of all steps, and of stopping them, fit in 8 minutes."""
    code, printed, rows = run(tmp_path)
    assert code == 77
    assert len(rows) == 7 and {row[1] for row in rows} == {"skipped: no GPU"}
    assert printed.count("\nskipped: no GPU\n") == 7
    assert sum(int(row[3]) + 5 for row in rows) < MOST_SECONDS - 15


@pytest.mark.parametrize(
    ("ends", "code", "words"),
    [
        ({}, 0, {"ran"}),
        ({"KERNELS": "77"}, 77, {"ran", "skipped, as it says"}),
        ({"TESTS": "1", "KERNELS": "77"}, 1, {"ran", "failed with code 1", "skipped, as it says"}),
        ({"TESTS": "124"}, 1, {"ran", "stopped after 140 s"}),
    ],
)
def test_exit_codes_tell_what_became_of_steps(tmp_path: Path, ends: dict[str, str], code: int, words: set[str]) -> None:
    """On a machine with a GPU a step that fails is told from one that is skipped; those after it run all the same."""
    got, _, rows = run(tmp_path, GPU="NVIDIA H200", **ends)
    assert got == code
    assert len(rows) == 7 and {row[1] for row in rows} == words


def test_a_rehearsal_on_a_cpu(tmp_path: Path) -> None:
    """All but the steps that NCCL and symmetric memory are for."""
    code, printed, rows = run(tmp_path, DEVICE="cpu")
    assert code == 77
    assert [row[1] for row in rows] == ["ran", "skipped: no GPU", "skipped: no GPU", *["ran"] * 4]
    assert "--device cpu" in printed


def test_a_trace_that_is_none(tmp_path: Path) -> None:
    code, printed, rows = run(tmp_path, str(tmp_path))
    assert code == 2 and not rows
    assert printed == f"gpu.sh: {tmp_path} has no trace.json; give the folder of a trace\n"
