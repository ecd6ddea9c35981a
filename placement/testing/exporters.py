"""The contract that every exporter keeps. Inherit `ExporterContract` and give it the fixture `exporter`."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from placement.core.model import Model
from placement.core.placement import Placement
from placement.cost.choices import REPLICA_CHOICES
from placement.errors import MapError
from placement.exporters.base import Export, Exporter, ExportOptions, Importer
from placement.exporters.imports import imported

# of which EPLB copies about what is copied below
LOAD_LE = np.array([[9.0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 9.0]])
JUNK = (
    b"",
    b"[]",
    b"{}",
    b"7",
    b"\xff\xfe\x00",
    b'{"a": [[0]]}',
    b"[[0, 1], [0]]",
    b"a: [",
    b"\x93NUMPY\x01",
    b"PK\3\4",
)


def small_placement(*, redundant: bool = True, layer_ids: tuple[int, ...] = (0, 1)) -> Placement:
    """Two nodes of two GPUs and six experts with two redundant slots, or of one GPU and none."""
    rows = (
        [[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]] if redundant else [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0]]
    )
    return Placement(
        model=Model(name="small", layer_ids=layer_ids, num_experts=6, top_k=2),
        num_nodes=2,
        gpus_per_node=2 if redundant else 1,
        slots_per_gpu=2 if redundant else 3,
        phy2log_LP=np.array(rows),
    )


def exported(exporter: Exporter, placement: Placement, suffix: str = "") -> Export:
    """What an exporter makes; one that places by load is given loads where there are redundant experts."""
    load_LE = LOAD_LE if exporter.takes_load and placement.num_redundant else None
    return exporter.export(placement, ExportOptions(suffix=suffix, load_LE=load_LE))


def by_rank(placement: Placement) -> npt.NDArray[np.int32]:
    """The experts of every rank in order, [L, G, slots]: alike for maps that differ in the order of a rank's slots."""
    return np.sort(placement.phy2log_LP.reshape(placement.model.num_layers, placement.num_ranks, -1), axis=2)


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return Path.touch, (self.path,)


class ExporterContract:
    """Tests for any exporter."""

    @pytest.fixture
    def exporter(self) -> Exporter:
        raise NotImplementedError("override this fixture to return the exporter under test")

    def suffixes(self, exporter: Exporter | Importer) -> tuple[str, ...]:
        """Those that this machine can write: `.pt` takes torch."""
        if ".pt" in exporter.suffixes:
            pytest.importorskip("torch")
        return exporter.suffixes

    def importer(self, exporter: Exporter) -> Importer:
        """The exporter, if its files can be read back; else the test is skipped."""
        if not isinstance(exporter, Importer):
            pytest.skip(f"no map can be read back from {exporter.name}")
        return exporter

    def test_same_placement_gives_same_bytes(self, exporter: Exporter) -> None:
        """No dates, no hashes in arbitrary order; the first ending is the default."""
        for suffix in self.suffixes(exporter):
            one, other = (exported(exporter, small_placement(), suffix) for _ in range(2))
            assert one == other, suffix
        assert exported(exporter, small_placement()) == exported(exporter, small_placement(), exporter.suffixes[0])

    def test_different_maps_give_different_bytes(self, exporter: Exporter) -> None:
        """The map is in the file."""
        one = small_placement(redundant=False)
        swapped = one.phy2log_LP.copy()
        swapped[0, [0, 3]] = swapped[0, [3, 0]]
        other = replace(one, phy2log_LP=swapped)
        for suffix in self.suffixes(exporter):
            assert exported(exporter, one, suffix).content != exported(exporter, other, suffix).content

    @pytest.mark.parametrize("redundant", [True, False])
    def test_takes_maps_with_and_without_redundant_experts(self, exporter: Exporter, redundant: bool) -> None:
        """Copies of experts are no reason to refuse a map, nor is their absence."""
        assert exported(exporter, small_placement(redundant=redundant)).content

    def test_takes_models_whose_first_layers_are_dense(self, exporter: Exporter) -> None:
        """MoE layers need not begin at 0."""
        assert exported(exporter, small_placement(layer_ids=(3, 4))).content

    @pytest.mark.parametrize("rank_hosts", [(0, 1, 1, 0), (1, 0, 1, 0), (1, 1, 0, 0)])
    def test_experts_go_to_the_ranks_of_the_engine(self, exporter: Exporter, rank_hosts: tuple[int, ...]) -> None:
        """Where ranks are not numbered node by node, the file is that of the map with its ranks in the engine's order;
        only our own files name the nodes."""
        scattered = replace(small_placement(), rank_hosts=rank_hosts)
        first_N = {node: scattered.gpus_per_node * node for node in range(scattered.num_nodes)}
        rows = []
        for node in rank_hosts:
            slots = scattered.slots_of_rank(first_N[node])
            rows.append(scattered.phy2log_LP[:, slots.start : slots.stop])
            first_N[node] += 1
        in_order = replace(small_placement(), phy2log_LP=np.hstack(rows))
        for suffix in self.suffixes(exporter):
            content = exported(exporter, scattered, suffix).content
            if b"rank_hosts" not in content:
                assert content == exported(exporter, in_order, suffix).content, suffix
            elif isinstance(document := json.loads(content), dict):
                assert document["physical_to_logical"] == in_order.phy2log_LP.tolist()

    def test_hints_are_single_lines(self, exporter: Exporter) -> None:
        """What to tell the engine is shown line by line."""
        assert all(hint and "\n" not in hint for hint in exported(exporter, small_placement()).hints)

    def test_hints_say_what_the_engine_needs(self, exporter: Exporter) -> None:
        """Where there are hints, they say how many experts are redundant and how the engine chooses among copies."""
        hints = exported(exporter, small_placement()).hints
        if hints:
            assert any("redundant experts: 2 a layer" in hint for hint in hints)
            chosen = [hint for hint in hints if hint.startswith("replica choice: ")]
            assert len(chosen) == 1
            assert any(name in chosen[0] for name in REPLICA_CHOICES)
            assert all(name in REPLICA_CHOICES and name in chosen[0] for name in exporter.replica_choices)

    def test_is_named_and_has_suffixes(self, exporter: Exporter) -> None:
        """Users choose an exporter by its name, and a format by the ending."""
        assert exporter.name
        assert exporter.suffixes and all(suffix.startswith(".") for suffix in exporter.suffixes)

    @pytest.mark.parametrize("redundant", [True, False])
    def test_what_it_wrote_is_read_back(self, exporter: Exporter, redundant: bool) -> None:
        """The same experts on the same ranks, and written again the same file."""
        importer, placement = self.importer(exporter), small_placement(redundant=redundant, layer_ids=(1, 3))
        for suffix in self.suffixes(exporter):
            content = exported(exporter, placement, suffix).content
            loaded = imported(
                importer.read(content, suffix),
                name="small",
                top_k=2,
                num_nodes=2,
                gpus_per_node=placement.gpus_per_node,
                layer_ids=(1, 3),
            )
            assert np.array_equal(by_rank(loaded), by_rank(placement)), suffix
            assert loaded.model.layer_ids == (1, 3)
            assert exported(exporter, loaded, suffix).content == content, suffix

    def test_refuses_what_is_no_such_file(self, exporter: Exporter) -> None:
        """Junk, other files and half of its own are refused in one line, whatever they hold."""
        importer = self.importer(exporter)
        for suffix in self.suffixes(importer):
            whole = exported(exporter, small_placement(), suffix).content
            for content in (*JUNK, whole[: len(whole) // 2], whole[:-20]):
                with pytest.raises(MapError) as refused:
                    importer.read(content, suffix)
                assert "\n" not in str(refused.value)

    def test_never_unpickles(self, exporter: Exporter, tmp_path: Path) -> None:
        """A pickle that would make a file is refused, and makes none."""
        importer, target = self.importer(exporter), tmp_path / "made"
        for suffix in self.suffixes(importer):
            with pytest.raises(MapError):
                importer.read(pickle.dumps({"physical_to_logical_map": Bomb(target)}), suffix)
            assert not target.exists()
