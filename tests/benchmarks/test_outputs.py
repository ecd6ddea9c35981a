"""Scripts check where they are to write while their arguments are parsed: some work for an hour before they do."""

from __future__ import annotations

from pathlib import Path

import pytest
from bench_scripts import EXAMPLES, SCRIPTS, Argument, arguments, before, refusal, with_kinds

WRITTEN_BY_EXAMPLES = {"--output", "folder"}
FILE_OR_FOLDER = ("output_file", "output_folder")
OUTPUTS = [
    *with_kinds(*FILE_OR_FOLDER),
    *(
        pytest.param(path, one, id=f"{path.name} {one.name}")
        for path in EXAMPLES.glob("*.py")
        for one in arguments(path)
        if one.name in WRITTEN_BY_EXAMPLES
    ),
]


def test_the_scripts_are_read() -> None:
    """Protects the reading above: without arguments the test below would pass for nothing."""
    found = {(path.name, one.name) for path in SCRIPTS for one in arguments(path)}
    assert {("run.py", "--out"), ("quality.py", "--plot"), ("train_tiny_moe.py", "--output")} < found


@pytest.mark.parametrize(("path", "argument"), OUTPUTS)
def test_a_bad_output_is_refused_before_the_work(
    path: Path, argument: Argument, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch
) -> None:
    """Below a file nothing can be made: exit 2 and words of argparse."""
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    words = before(path, argument, tmp_path_factory.mktemp("good"))
    assert "file/x" in refusal(path, [*words, *argument.given("file/x")], monkeypatch)
    assert [one.name for one in tmp_path.iterdir()] == ["file"]
