"""Scripts check where they are to write while their arguments are parsed: some work for an hour before they do."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SCRIPTS = [*sorted((REPOSITORY / "benchmarks").rglob("*.py")), *sorted((REPOSITORY / "examples").glob("*.py"))]
READ = {"trace", "model", "documents", "--texts", "--beside"}  # arguments that name what is read
ABSENT_MODULE = "ModuleNotFoundError"


def arguments(path: Path) -> Iterator[tuple[str, str, str]]:
    """(longest name, name of the type, a value for it) of every argument that a script declares, in order."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "add_argument":
            names = [str(one.value) for one in node.args if isinstance(one, ast.Constant)]
            words = {str(word.arg): word.value for word in node.keywords}
            kind = ast.unparse(words["type"]) if "type" in words else ""
            choices = words.get("choices")
            first = ast.literal_eval(choices)[0] if isinstance(choices, ast.Tuple | ast.List) else "absent"
            yield max(names, key=len), kind, first


def path_arguments() -> list[object]:
    return [
        pytest.param(path, name, id=f"{path.relative_to(REPOSITORY)} {name}")
        for path in SCRIPTS
        for name, kind, _ in arguments(path)
        if kind in ("Path", "output_file", "output_folder") and name not in READ
    ]


def test_the_scripts_are_read() -> None:
    """Protects the reading above: without arguments the test below would pass for nothing."""
    found = {(path.name, name) for path in SCRIPTS for name, _, _ in arguments(path)}
    assert {("run.py", "--out"), ("quality.py", "--plot"), ("train_tiny_moe.py", "--output")} < found


@pytest.mark.parametrize(("path", "name"), path_arguments())
def test_a_bad_output_is_refused_before_the_work(path: Path, name: str, tmp_path: Path) -> None:
    """Below a file nothing can be made: exit 2 and words of argparse, whatever else is missing or absent."""
    (tmp_path / "file").write_text("")
    given = [name, "file/x"] if name.startswith("-") else ["file/x"]
    before = [value for one, _, value in arguments(path) if not one.startswith("-") and one != name]
    command = [sys.executable, str(path), *before, *given]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
    if ABSENT_MODULE in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr and "file/x" in done.stderr.splitlines()[-1]
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
