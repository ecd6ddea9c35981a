"""What is saved is loaded again, part by part, and a file is replaced whole or not at all."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sound_placement import sound_placement

from placement import Model, Placement, load_placement, save_placement
from placement.documents.placement import PlacementFile
from placement.errors import InputError, OutputError


@pytest.mark.parametrize("num_groups", [None, 3])
def test_round_trip(tmp_path: Path, num_groups: int | None) -> None:
    """What is saved is what is loaded; saving that again gives the same bytes."""
    placement = sound_placement(num_groups)
    path = tmp_path / "placement.json"
    save_placement(path, PlacementFile.of(placement).document())
    loaded, file = load_placement(path)
    assert loaded.model == placement.model
    assert (loaded.num_nodes, loaded.gpus_per_node, loaded.slots_per_gpu) == (2, 2, 2)
    np.testing.assert_array_equal(loaded.phy2log_LP, placement.phy2log_LP)
    assert (file.evaluation, file.layers, file.provenance) == (None, None, None)
    assert PlacementFile.of(loaded).content() == path.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["placement.json"]


def test_full_round_trip(tmp_path: Path, full_document: dict[str, Any]) -> None:
    """The evaluation, the layers and the provenance come back as they were."""
    path = tmp_path / "placement.json"
    save_placement(path, full_document)
    assert json.loads(path.read_bytes()) == full_document
    _, file = load_placement(path)
    again = file.document()
    for part in ("evaluation", "layers", "provenance", "physical_to_logical", "cluster"):
        assert again[part] == full_document[part], part


@settings(max_examples=50)
@given(
    name=st.text(max_size=20),
    layer_ids=st.lists(st.integers(0, 100), min_size=1, max_size=3, unique=True).map(sorted),
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    provenance=st.dictionaries(st.text(max_size=5), st.text(max_size=12), max_size=3),
    seed=st.integers(0, 2**32),
)
def test_round_trip_of_anything(
    name: str, layer_ids: list[int], shape: tuple[int, int, int], provenance: dict[str, str], seed: int
) -> None:
    """Whatever the names are (quotes, the writer's own marks, unpaired surrogates excluded), nothing is lost."""
    num_experts = shape[0] * shape[1] * shape[2]
    rng = np.random.default_rng(seed)
    placement = Placement(
        model=Model(name=name, layer_ids=tuple(layer_ids), num_experts=num_experts, top_k=1),
        num_nodes=shape[0],
        gpus_per_node=shape[1],
        slots_per_gpu=shape[2],
        phy2log_LP=np.stack([rng.permutation(num_experts) for _ in layer_ids]),
    )
    document = PlacementFile.of(placement, provenance=provenance).document()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "p.json")
        save_placement(path, document)
        assert json.loads(path.read_bytes()) == document
        loaded, file = load_placement(path)
    assert loaded.model == placement.model
    assert file.provenance is not None
    assert file.provenance.model_dump(exclude_unset=True) == provenance
    np.testing.assert_array_equal(loaded.phy2log_LP, placement.phy2log_LP)


def test_the_writers_own_mark_in_a_name(tmp_path: Path) -> None:
    """Text that looks like the place holder of the rows stays text."""
    document = PlacementFile.of(
        sound_placement(), provenance={"note": ["@rows@"], "other": '[\n  "@rows@"\n ]'}
    ).document()
    save_placement(tmp_path / "p.json", document)
    assert json.loads((tmp_path / "p.json").read_bytes()) == document


class TestSaving:
    """A placement file is written whole or not at all."""

    def test_replaces(self, tmp_path: Path) -> None:
        path = tmp_path / "p.json"
        path.write_text("old")
        save_placement(path, PlacementFile.of(sound_placement()).document())
        load_placement(path)
        assert [entry.name for entry in tmp_path.iterdir()] == ["p.json"]

    def test_folder_is_missing(self, tmp_path: Path) -> None:
        with pytest.raises(OutputError, match="No such file"):
            save_placement(tmp_path / "no" / "p.json", PlacementFile.of(sound_placement()).document())
        assert not list(tmp_path.iterdir())

    def test_output_is_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "p.json").mkdir()
        with pytest.raises(OutputError):
            save_placement(tmp_path / "p.json", PlacementFile.of(sound_placement()).document())
        assert [entry.name for entry in tmp_path.iterdir()] == ["p.json"]


def test_number_of_hidden_layers_is_kept(tmp_path: Path) -> None:
    """Known or not, it comes back; files that do not say it are as they were before there was such a key."""
    known = replace(sound_placement(), model=replace(sound_placement().model, num_hidden_layers=8))
    save_placement(tmp_path / "p.json", PlacementFile.of(known).document())
    assert load_placement(tmp_path / "p.json")[0].model.num_hidden_layers == 8
    assert "num_hidden_layers" not in PlacementFile.of(sound_placement()).document()["model"]


@pytest.mark.parametrize(("hidden", "main"), [(None, 2), (9, 2), (8, 2), (7, 1), (4, 1)])
def test_mtp_layers_come_after_the_others(hidden: int | None, main: int) -> None:
    """Of MoE layers 3 and 7, those at `num_hidden_layers` or above are for multi-token prediction."""
    assert replace(sound_placement().model, num_hidden_layers=hidden).num_main_layers == main


def test_a_model_without_main_layers_is_refused() -> None:
    with pytest.raises(InputError, match="num_hidden_layers=3 leaves out every MoE layer"):
        replace(sound_placement().model, num_hidden_layers=3)
