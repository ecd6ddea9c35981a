"""The commands and the example of docs/runtime-apply.md run, one after the other."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from models import make_model
from moe import torch
from served_models import make_map

from placement import save_placement
from placement.documents.placement import PlacementFile

GUIDE = (Path(__file__).parents[2] / "docs" / "runtime-apply.md").read_text()


def test_the_guide_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_cli: Callable[..., Any]) -> None:
    """As it stands: a checkpoint as transformers writes it, cut, restored, attached, swapped; logits stay the same."""
    monkeypatch.chdir(tmp_path)
    model = make_model("olmoe")
    model.save_pretrained("olmoe")
    for name, seed in (("placement.json", 0), ("newer.json", 1)):
        save_placement(name, PlacementFile.of(make_map((0, 1), seed=seed)).document())
    (block,) = re.findall(r"^```text\n(\$.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    for line in block.splitlines():
        done = run_cli(*shlex.split(line.removeprefix("$ placement")))
        assert done.code == 0, done.stderr
    assert Path("olmoe-again/model.safetensors").read_bytes() == Path("olmoe/model.safetensors").read_bytes()
    (example,) = re.findall(r"^```python\n(.*?)^```", GUIDE, re.MULTILINE | re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(example, "docs/runtime-apply.md", "exec"), names)  # noqa: S102
    for rank, (before, after, placement) in enumerate(names["results"]):
        with torch.no_grad():
            wanted = model(input_ids=torch.tensor([[5, 6, 7 + rank]])).logits
        assert float((before - wanted).abs().max()) < 1e-5
        assert float((after - wanted).abs().max()) < 1e-5
        assert placement is names["results"][0][2] or (placement.phy2log_LP == names["results"][0][2].phy2log_LP).all()
