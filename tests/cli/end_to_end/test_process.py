"""The command line as a process: help, version, what it imports, and how it ends."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from solved_trace import QUICK


@pytest.mark.parametrize(
    "command",
    [
        (),
        ("solve",),
        ("evaluate",),
        ("export",),
        ("import",),
        ("traces",),
        ("traces", "info"),
        ("traces", "split"),
        ("traces", "merge"),
        ("traces", "synth"),
    ],
    ids=" ".join,
)
def test_help(command: tuple[str, ...], run_cli: Any) -> None:
    """Every command explains itself and its options."""
    result = run_cli(*command, "--help")
    assert result.code == 0
    assert "Usage: placement" in result.stdout
    assert "--help" in result.stdout
    assert result.stderr == ""


def test_version(run_cli: Any) -> None:
    import placement

    assert run_cli("--version").stdout == placement.__version__ + "\n"


NO_TORCH = """
import sys

asked = []


class Watch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            asked.append(name)
        return None


sys.meta_path.insert(0, Watch())
import placement
from placement.cli import main

trace, folder = sys.argv[1:]
for arguments in (
    ["solve", trace, "--nodes", "2", "--work-limit", "500", "-o", folder + "/p.json", "--report", folder + "/r.html"],
    ["evaluate", trace, "--map", folder + "/p.json"],
    ["export", folder + "/p.json", "--to", "native", "-o", folder + "/n.json"],
    ["export", folder + "/p.json", "--to", "sglang", "-o", folder + "/s.json"],
    ["traces", "info", trace],
):
    try:
        main(arguments)
    except SystemExit as stop:
        assert not stop.code, (arguments, stop.code)
assert not asked, asked
assert not any(name.partition(".")[0] == "torch" for name in sys.modules)
print("no torch")
"""


def test_no_torch(trace: Path, tmp_path: Path, run_python: Any) -> None:
    """Neither the import nor solve, evaluate, export and info so much as look for torch, installed or not."""
    result = run_python(NO_TORCH, trace, tmp_path)
    assert result.code == 0, result.stderr
    assert result.stdout.endswith("no torch\n")


LIGHT = """
import sys
import placement

print(sorted({"matplotlib", "ortools", "networkx", "jinja2", "typer"} & set(sys.modules)))
"""


def test_import_is_light(run_python: Any) -> None:
    """`import placement` loads no plotting, no solver suite and no command line."""
    result = run_python(LIGHT)
    assert result.code == 0, result.stderr
    assert result.stdout == "[]\n"


def test_in_a_process_of_its_own(trace: Path, tmp_path: Path, run_process: Any) -> None:
    """The console script's entry point: JSON on stdout, exit code 0, a file where asked."""
    result = run_process(
        "solve", trace, "--nodes", 2, "--gpus-per-node", 2, "-o", "p.json", "--json", *QUICK, cwd=tmp_path
    )
    assert result.code == 0, result.stderr
    assert json.loads(result.stdout) == json.loads((tmp_path / "p.json").read_bytes())
    assert result.stderr == ""


def test_a_reader_that_goes_away(trace: Path, tmp_path: Path, run_python: Any) -> None:
    """`placement ... | head -1` ends without a traceback."""
    script = (
        "import subprocess, sys; "
        "p = subprocess.Popen([sys.executable, '-c', 'from placement.cli import main; main()', *sys.argv[1:]], "
        "stdout=subprocess.PIPE, stderr=subprocess.PIPE); p.stdout.close(); "
        "sys.stderr.write(p.stderr.read().decode()); sys.exit(p.wait())"
    )
    result = run_python(
        script, "solve", trace, "--nodes", 2, "--gpus-per-node", 2, "-o", tmp_path / "p.json", "--json", *QUICK
    )
    assert "Traceback" not in result.stderr
    assert "BrokenPipe" not in result.stderr
    assert result.code == 0
