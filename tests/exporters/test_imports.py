"""Files that engines load are read back as the maps that they are, slot for slot."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from engine_files import GOLDEN, READABLE, WRITERS, ascend, eplb, npy, read
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save

from placement.core.model import Model
from placement.core.placement import Placement
from placement.errors import MapError, OptionError
from placement.exporters import EXPORTERS, get_exporter, get_importer
from placement.exporters.base import ExportOptions, FileMap, Importer
from placement.exporters.deepseek_eplb import eplb_tensors
from placement.exporters.imports import imported
from placement.testing.exporters import by_rank, small_placement


@pytest.mark.parametrize("name", WRITERS)
def test_the_golden_map_is_read(name: str) -> None:
    """The fixture that is used against the engines' own parsers."""
    placement = read(name, WRITERS[name](GOLDEN))
    assert placement.phy2log_LP.tolist() == GOLDEN
    assert (placement.num_nodes, placement.gpus_per_node, placement.slots_per_gpu) == (2, 2, 2)
    assert (placement.model.layer_ids, placement.model.num_experts) == ((0, 1), 6)


def test_the_golden_pattern_is_read() -> None:
    """omni-infer says which rank holds what, not in which order."""
    holds_GLE = np.zeros((4, 2, 6), dtype=np.int32)
    for layer, row in enumerate(GOLDEN):
        holds_GLE[np.arange(8) // 2, layer, row] = 1
    content = npy(holds_GLE)
    assert np.array_equal(by_rank(read("omni-infer", content)), by_rank(small_placement()))
    assert get_exporter("omni-infer").export(small_placement()).content == content


TWICE = [[0, 1, 2, 3, 4, 5, 0, 0], [5, 4, 3, 2, 1, 0, 5, 4]]


@pytest.mark.parametrize("name", WRITERS)
def test_an_expert_twice_on_a_gpu_is_read(name: str) -> None:
    """EPLB makes such maps and engines run them; where one breaks on them, the export refuses and says how to mend."""
    content = save(eplb_tensors(np.array(TWICE), 6)) if name == "deepseek-eplb" else WRITERS[name](TWICE)
    placement = read(name, content)
    assert placement.phy2log_LP.tolist() == TWICE
    assert placement.wasted_LP().sum() == 1
    for other in EXPORTERS:
        exporter = get_exporter(other)
        if other in ("vllm-ascend", "omni-infer"):
            with pytest.raises(MapError, match=r"layer 0: GPU 3 holds expert 0 more than once.*--from"):
                exporter.export(placement)
        elif isinstance(exporter, Importer):
            again = read(other, exporter.export(placement).content)
            assert np.array_equal(again.phy2log_LP, placement.phy2log_LP)


class TestLayers:
    FILE = FileMap(rows=[np.array(row) for row in (GOLDEN[0], GOLDEN[0], GOLDEN[1])], hidden=True)

    def told(self, file: FileMap, **options: Any) -> Placement:
        return imported(file, name="m", top_k=2, num_nodes=2, gpus_per_node=2, **options)

    def test_rows_of_dense_layers_are_left_out(self) -> None:
        """Of a file with a row for every hidden layer only the MoE layers count, and their number is kept."""
        placement = self.told(self.FILE, layer_ids=(1, 2))
        assert placement.phy2log_LP.tolist() == GOLDEN
        assert (placement.model.layer_ids, placement.model.num_hidden_layers) == ((1, 2), 3)

    def test_without_their_numbers_all_rows_count(self) -> None:
        assert self.told(self.FILE).model.layer_ids == (0, 1, 2)

    def test_rows_of_moe_layers_get_numbers(self) -> None:
        file = FileMap(rows=[np.array(row) for row in GOLDEN])
        placement = self.told(file, layer_ids=(3, 4), num_hidden_layers=5)
        assert (placement.model.layer_ids, placement.model.num_hidden_layers) == ((3, 4), 5)

    def test_one_row_for_all_layers(self) -> None:
        """As vLLM's pull request allows."""
        file = get_importer("vllm").read(json.dumps(GOLDEN[0]).encode(), ".json")
        assert self.told(file, layer_ids=(3, 4)).phy2log_LP.tolist() == [GOLDEN[0]] * 2
        with pytest.raises(OptionError, match="--moe-layers"):
            self.told(file)

    @pytest.mark.parametrize(
        ("options", "error", "told"),
        [
            ({"layer_ids": (1, 3)}, MapError, "no row for layer 3"),
            ({"num_hidden_layers": 4}, MapError, "3 rows; one for each of 4 hidden layers"),
            ({"gpus_per_node": None}, OptionError, "give --gpus-per-node"),
            ({"gpus_per_node": 3}, MapError, "cannot be shared evenly by 6 GPUs"),
            ({"gpus_per_node": 0}, OptionError, "must be at least 1"),
            ({"num_nodes": 0}, OptionError, "must be at least 1"),
            ({"num_experts": 7}, MapError, "experts 6 have no slot"),
            ({"top_k": 0}, MapError, "top_k=0"),
        ],
    )
    def test_what_does_not_fit_is_refused(self, options: dict[str, Any], error: type[Exception], told: str) -> None:
        with pytest.raises(error, match=told):
            imported(self.FILE, **({"name": "m", "top_k": 2, "num_nodes": 2, "gpus_per_node": 2} | options))

    def test_what_the_file_says_is_not_overruled(self) -> None:
        """vLLM Ascend's file says how many devices there are, EPLB's tensors how many experts."""
        file = get_importer("vllm-ascend").read(ascend(GOLDEN), ".json")
        with pytest.raises(OptionError, match="for 4 GPUs, not for 2 x 1"):
            imported(file, name="m", top_k=2, num_nodes=2, gpus_per_node=1)
        assert imported(file, name="m", top_k=2, num_nodes=2).gpus_per_node == 2
        with pytest.raises(OptionError, match="not what the file says, 6"):
            read("deepseek-eplb", eplb(GOLDEN), num_experts=7)


@st.composite
def placements(draw: st.DrawFn) -> Placement:
    """Any shape, dense layers between and after; maps are trivial ones with experts and ranks renamed."""
    nodes, gpus, slots = draw(st.sampled_from([(1, 2, 3), (2, 1, 1), (2, 2, 2), (3, 2, 4), (2, 3, 5)]))
    num_slots = nodes * gpus * slots
    num_experts = draw(st.integers(slots, num_slots))
    layer_ids = tuple(sorted(draw(st.sets(st.integers(0, 9), min_size=1, max_size=4))))
    rows = []
    for _ in layer_ids:
        renamed_E = np.array(draw(st.permutations(range(num_experts))))
        rank_G = np.array(draw(st.permutations(range(nodes * gpus))))
        rows.append(renamed_E[(np.arange(num_slots) % num_experts).reshape(-1, slots)[rank_G].ravel()])
    hidden = draw(st.integers(layer_ids[-1] + 1, 12))
    model = Model(name="m", layer_ids=layer_ids, num_experts=num_experts, top_k=1, num_hidden_layers=hidden)
    return Placement(model=model, num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, phy2log_LP=np.array(rows))


@settings(max_examples=30)
@given(placement=placements())
def test_any_map_comes_back(placement: Placement) -> None:
    """Through every format that holds a map: the same model and map, slot for slot, but for the order within a rank
    where the format does not tell it."""
    for name in READABLE:
        exporter, importer = get_exporter(name), get_importer(name)
        for suffix in exporter.suffixes:
            loaded = imported(
                importer.read(exporter.export(placement, ExportOptions(suffix=suffix)).content, suffix),
                name="m",
                top_k=1,
                num_nodes=placement.num_nodes,
                gpus_per_node=placement.gpus_per_node,
                num_experts=placement.model.num_experts,
                layer_ids=placement.model.layer_ids,
                num_hidden_layers=placement.model.num_hidden_layers,
            )
            assert loaded.model == placement.model, suffix
            if name == "omni-infer":
                assert np.array_equal(by_rank(loaded), by_rank(placement))
            else:
                assert np.array_equal(loaded.phy2log_LP, placement.phy2log_LP), suffix


@pytest.mark.parametrize(("experts", "gpus", "least"), [(6, 3, 0), (6, 5, 4), (5, 2, 3)])
def test_slots_that_gpus_cannot_share(experts: int, gpus: int, least: int) -> None:
    """The message names the least number of redundant experts that the GPUs can share."""
    file = FileMap(rows=[np.array([*range(experts), 0])], num_experts=experts)
    with pytest.raises(MapError, match=f"for {experts} experts, {least} redundant ones are the least that can be"):
        imported(file, name="x", top_k=1, num_nodes=2, gpus_per_node=gpus)
