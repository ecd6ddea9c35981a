"""Maps in files that torch wrote are read without torch, and never unpickled."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_files import GOLDEN

from placement.errors import MapError, OptionError
from placement.exporters import get_exporter, get_importer
from placement.exporters.base import ExportOptions
from placement.testing.exporters import exported, small_placement


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_the_map_in_force_is_in_a_dump_of_the_recorder(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With --enable-eplb no other file has the map that SGLang serves with; torch is not needed to read the dump."""
    torch = pytest.importorskip("torch")
    rows = torch.tensor(GOLDEN, dtype=getattr(torch, dtype))
    records = [{"forward_pass_id": 3, "rank": 0, "gatherer_key": "primary", "global_physical_count": rows * 7}]
    forms = {
        "per_pass": {"records": records, "last_physical_to_logical_map": rows},
        "no records yet": {"records": [], "last_physical_to_logical_map": rows},
        "--init-expert-location": {"physical_to_logical_map": rows},
        "made of a transposed tensor": {"physical_to_logical_map": rows.T.contiguous().T},
        "lists": {"physical_to_logical_map": GOLDEN},
    }
    contents = {}
    for what, document in forms.items():
        buffer = io.BytesIO()
        torch.save(document, buffer)
        contents[what] = buffer.getvalue()
    monkeypatch.setitem(sys.modules, "torch", None)
    for what, content in contents.items():
        file = get_importer("sglang").read(content, ".pt")
        assert file.hidden, what
        assert [row.tolist() for row in file.rows] == GOLDEN, what


@pytest.mark.parametrize(
    ("document", "told"),
    [
        ({"rank": 0, "logical_count": np.ones((1, 2, 6))}, "has no map; give a file with physical_to_logical_map"),
        ({"records": [], "last_physical_to_logical_map": np.ones((2, 8))}, "last_physical_to_logical_map is float64"),
        ({"records": [], "last_physical_to_logical_map": None}, "list of rows"),
        ({"physical_to_logical_map": np.array(GOLDEN), "note": "mine"}, "note is not allowed"),
        ({"physical_to_logical_map": [GOLDEN[0], GOLDEN[1][:7]]}, r"differ in slots \(8 in layer 0; 7 in layer 1\)"),
        ([np.array(GOLDEN)], "holds a list; a dict of tensors"),
    ],
)
def test_torch_files_without_a_map_are_refused(document: Any, told: str) -> None:
    """In one line, whatever else they hold."""
    torch = pytest.importorskip("torch")

    def tensors(one: Any) -> Any:
        if isinstance(one, dict):
            return {key: tensors(value) for key, value in one.items()}
        return torch.from_numpy(one) if isinstance(one, np.ndarray) else one

    buffer = io.BytesIO()
    torch.save(tensors(document) if isinstance(document, dict) else [tensors(one) for one in document], buffer)
    with pytest.raises(MapError, match=told) as refused:
        get_importer("sglang").read(buffer.getvalue(), ".pt")
    assert "\n" not in str(refused.value)


def test_a_malicious_torch_file_is_refused(tmp_path: Path) -> None:
    """A zip of torch's kind whose pickle would make a file."""
    torch = pytest.importorskip("torch")
    from placement.testing.exporters import Bomb

    buffer = io.BytesIO()
    torch.save({"physical_to_logical_map": Bomb(tmp_path / "made")}, buffer)
    with pytest.raises(MapError, match="tensors alone"):
        get_importer("sglang").read(buffer.getvalue(), ".pt")
    assert not (tmp_path / "made").exists()


def test_exported_needs_no_torch_but_for_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without torch .pt files are refused with the way to mend it, and all others are written."""
    monkeypatch.setitem(sys.modules, "torch", None)
    for name in ("sglang", "deepseek-eplb"):
        assert exported(get_exporter(name), small_placement()).content
        with pytest.raises(OptionError, match=r"expert-placement\[runtime\]"):
            get_exporter(name).export(small_placement(), ExportOptions(suffix=".pt"))
