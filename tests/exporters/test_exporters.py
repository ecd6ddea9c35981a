"""Every registered exporter keeps the contract; each format has a golden file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from placement.errors import OptionError
from placement.exporters import EXPORTERS, Exporter, get_exporter
from placement.placement_json import load_placement
from placement.testing.exporters import ExporterContract, small_placement

GOLDEN = Path(__file__).parent.parent / "golden"


class TestContract(ExporterContract):
    @pytest.fixture(params=sorted(EXPORTERS))
    def exporter(self, request: pytest.FixtureRequest) -> Exporter:
        return get_exporter(request.param)


@pytest.mark.parametrize("name", sorted(EXPORTERS))
def test_golden_file(name: str) -> None:
    """The bytes that engines load change only on purpose."""
    exporter = get_exporter(name)
    golden = GOLDEN / f"export-{name}{exporter.suffix}"
    assert exporter.export(small_placement(layer_ids=(1, 3))).content == golden.read_bytes()


def test_native_loads_back(tmp_path: Path) -> None:
    placement = small_placement()
    path = tmp_path / "p.json"
    path.write_bytes(get_exporter("native").export(placement).content)
    loaded, _ = load_placement(path)
    assert np.array_equal(loaded.phy2log_LP, placement.phy2log_LP)
    assert loaded.model == placement.model


def test_sglang_rows_are_hidden_layers() -> None:
    """SGLang indexes rows by absolute layer and refuses any further key; rows of dense layers are sound maps."""
    placement = small_placement(layer_ids=(1, 3))
    document = json.loads(get_exporter("sglang").export(placement).content)
    assert list(document) == ["physical_to_logical_map"]
    rows = document["physical_to_logical_map"]
    assert len(rows) == 4
    assert [rows[1], rows[3]] == placement.phy2log_LP.tolist()
    assert all(set(row) == set(range(6)) for row in rows)


def test_sglang_hints_name_the_flags() -> None:
    hints = " ".join(get_exporter("sglang").export(small_placement()).hints)
    assert "--ep-num-redundant-experts 2" in hints
    assert "--init-expert-location FILE" in hints


def test_unknown_exporter() -> None:
    with pytest.raises(OptionError, match="native, sglang"):
        get_exporter("nothing")
