"""The example of docs/runtime.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from moe import make_placement, torch

from placement import save_placement
from placement.placement_json import placement_document


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it stands, on a map of the kind that `solve` writes; every rank gets a sum for each of its tokens."""
    text = (Path(__file__).parents[2] / "docs" / "runtime.md").read_text()
    (example,) = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    save_placement(tmp_path / "placement.json", placement_document(make_placement(2, 2, 4, 12, 3)))
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(example, "docs/runtime.md", "exec"), names)  # noqa: S102
    results = names["results"]
    assert isinstance(results, list)
    for rank, (y, across_bytes) in enumerate(results):
        assert y.shape == (10 + rank, 64)
        assert torch.isfinite(y).all()
        assert across_bytes > 0
