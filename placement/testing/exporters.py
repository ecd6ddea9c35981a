"""The contract that every exporter keeps. Inherit `ExporterContract` and give it the fixture `exporter`."""

from __future__ import annotations

import numpy as np
import pytest

from placement.exporters import Exporter
from placement.model import Model
from placement.placement_map import Placement


def small_placement(*, redundant: bool = True, layer_ids: tuple[int, ...] = (0, 1)) -> Placement:
    """Two nodes of two GPUs and six experts, with two redundant slots or (on three GPUs a node) with none."""
    rows = (
        [[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]] if redundant else [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]
    )
    return Placement(
        model=Model(name="small", layer_ids=layer_ids, num_experts=6, top_k=2),
        num_nodes=2,
        gpus_per_node=2 if redundant else 3,
        slots_per_gpu=2 if redundant else 1,
        phy2log_LP=np.array(rows),
    )


class ExporterContract:
    """Tests for any exporter."""

    @pytest.fixture
    def exporter(self) -> Exporter:
        raise NotImplementedError("override this fixture to return the exporter under test")

    def test_same_placement_gives_same_bytes(self, exporter: Exporter) -> None:
        """No dates, no hashes in arbitrary order."""
        assert exporter.export(small_placement()) == exporter.export(small_placement())

    def test_different_maps_give_different_bytes(self, exporter: Exporter) -> None:
        """The map is in the file."""
        one = small_placement()
        swapped = one.phy2log_LP.copy()
        swapped[0, [0, 2]] = swapped[0, [2, 0]]
        other = Placement(
            model=one.model,
            num_nodes=one.num_nodes,
            gpus_per_node=one.gpus_per_node,
            slots_per_gpu=one.slots_per_gpu,
            phy2log_LP=swapped,
        )
        assert exporter.export(one).content != exporter.export(other).content

    @pytest.mark.parametrize("redundant", [True, False])
    def test_takes_maps_with_and_without_redundant_experts(self, exporter: Exporter, redundant: bool) -> None:
        assert exporter.export(small_placement(redundant=redundant)).content

    def test_takes_models_whose_first_layers_are_dense(self, exporter: Exporter) -> None:
        assert exporter.export(small_placement(layer_ids=(3, 4))).content

    def test_hints_are_single_lines(self, exporter: Exporter) -> None:
        """What to tell the engine is shown line by line."""
        assert all(hint and "\n" not in hint for hint in exporter.export(small_placement()).hints)

    def test_is_named_and_has_a_suffix(self, exporter: Exporter) -> None:
        assert exporter.name and exporter.suffix.startswith(".")
