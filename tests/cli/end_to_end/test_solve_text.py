"""What `placement solve` shows a reader: a table, paths and names as they are."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from solved_trace import QUICK


class TestSolveText:
    def test_text_output(self, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """The table compares linear, eplb and the result; progress is on stderr only, as plain lines."""
        result = run_cli("solve", trace, "--nodes", 2, "--gpus-per-node", 2, "-o", tmp_path / "p.json", *QUICK)
        assert result.code == 0
        for word in ("linear", "eplb", "auto", "held-out", "sends", "wrote"):
            assert word in result.stdout
        assert "\x1b" not in result.stdout + result.stderr
        assert "solving layers: 3/3" in result.stderr.splitlines()
        assert "counting tokens" not in result.stdout
        assert "solving layers" not in result.stdout
        assert all(re.fullmatch(r"[a-z ]+: \d+/\d+", line) for line in result.stderr.splitlines())
        # one solve of three layers is not drowned in lines
        assert len(result.stderr.splitlines()) < 20

    @pytest.mark.parametrize(
        "name", ["run[v1].json", "[/].json", "[red]/p.json", "l" * 120 + ".json", "two words.json"]
    )
    def test_paths_are_printed_as_they_are(self, name: str, trace: Path, tmp_path: Path, run_cli: Any) -> None:
        """Names that look like markup and long ones are shown whole, so that they can be copied."""
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        result = run_cli(
            *("solve", trace, "--nodes", 2, "--gpus-per-node", 2, "--solver", "linear", "-o", path),
            *("--report", f"{path}.html"),
        )
        assert result.code == 0, result.stderr
        assert str(path) in result.stdout
        assert f"{path}.html" in result.stdout
        evaluated = run_cli("evaluate", trace, "--map", path)
        assert evaluated.code == 0, evaluated.stderr
        exported = run_cli("export", path, "--to", "sglang", "-o", f"{path}.sglang.json")
        assert exported.code == 0, exported.stderr
        assert f"{path}.sglang.json" in exported.stdout

    def test_names_are_text(self, tmp_path: Path, run_cli: Any, write_trace: Any) -> None:
        """A model's name is shown, not interpreted: markup stays text and terminal codes do not get through."""
        name = "[/red] [bold]x[/bold] \x1b[2J"
        write_trace(tmp_path / "t", name=name)
        output = tmp_path / "p.json"
        for arguments in (
            ("solve", tmp_path / "t", "--nodes", 2, "--work-limit", 50, "-o", output, "--report", tmp_path / "r.html"),
            ("traces", "info", tmp_path / "t"),
        ):
            result = run_cli(*arguments)
            assert result.code == 0, result.stderr
            assert "[/red] [bold]x[/bold]" in result.stdout
            assert "\x1b" not in result.stdout
        assert json.loads(output.read_bytes())["model"]["name"] == name
