"""What a refusal looks like: one line of ours and an exit code; and what a folder then holds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any


def refused(result: Any, *told: str, code: int = 2) -> None:
    """One line of ours on stderr that says all of `told`, the exit code, and nothing on stdout."""
    assert "Traceback" not in result.stderr
    progress = re.compile(r"(counting|solving|measuring) |compiling:")
    lines = [line for line in result.stderr.splitlines() if not progress.match(line)]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("placement: error: "), lines
    for part in told:
        assert part in lines[0], lines[0]
    assert result.code == code
    assert result.stdout == ""


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
