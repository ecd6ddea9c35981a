"""The example of docs/runtime.md runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from moe import make_placement, torch

from placement import save_placement
from placement.documents.placement import PlacementFile

REPOSITORY = Path(__file__).parents[2]
GUIDE = (REPOSITORY / "docs" / "runtime.md").read_text()


def test_what_is_to_be_measured_is_there() -> None:
    """Scripts and tests that the guide's commands name exist with these options; all of the harness are named."""
    lines = [line for line in GUIDE.splitlines() if line.startswith(("$ p", "$ bash"))]
    commands = [shlex.split(line[2:].partition(">")[0], comments=True) for line in lines]
    scripts = {words[1] for words in commands if words[0] in ("python", "bash")}
    folder = REPOSITORY / "benchmarks" / "runtime"
    sources = {str(path.relative_to(REPOSITORY)): path.read_text() for path in folder.glob("*.py")}
    mains = {name for name, source in sources.items() if "argparse." in source and "__main__" in source}
    shells = {str(path.relative_to(REPOSITORY)) for path in folder.glob("*.sh")}
    assert scripts == mains | shells
    for program, *words in commands:
        for word in words:
            if "/" in word:
                assert (REPOSITORY / word).exists(), word
            if program == "python" and word.startswith("--"):
                source = (REPOSITORY / words[0]).read_text()
                shared = [text for name, text in sources.items() if f"from {Path(name).stem} import" in source]
                assert any(f'"{word}"' in text for text in (source, *shared)), word


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, on a map of the kind that `solve` writes; every rank gets a sum for each of its tokens."""
    (example,) = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    save_placement(tmp_path / "placement.json", PlacementFile.of(make_placement(2, 2, 4, 12, 3)).document())
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "docs/runtime.md", "exec"), names)  # noqa: S102
    results = names["results"]
    assert isinstance(results, list)
    for rank, (y, across_bytes) in enumerate(results):
        assert y.shape == (10 + rank, 64)
        assert torch.isfinite(y).all()
        assert across_bytes > 0
