"""vLLM Ascend's own reader makes the tables of our map."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from placement.errors import MapError
from placement.exporters import get_exporter, get_importer
from placement.exporters.imports import imported
from placement.testing.exporters import small_placement

pytestmark = pytest.mark.engines
NAME = "vllm_ascend.eplb.core.eplb_utils"


@pytest.fixture
def tables(
    import_engine: Callable[..., Callable[[str], ModuleType]], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Any]:
    """(expert map of all ranks, of this rank, log2phy, redundant experts) of a layer on one of four ranks."""
    import torch

    import_engine("vllm")
    load = import_engine("vllm_ascend", NAME)
    monkeypatch.setattr(torch.Tensor, "npu", lambda self: self, raising=False)

    def run(path: Path, layer: int, rank: int) -> Any:
        config = SimpleNamespace(expert_map_path=str(path), dynamic_eplb=False, num_redundant_experts=2)
        moe = SimpleNamespace(num_experts=6, ep_size=4, ep_rank=rank)
        return load(NAME).init_eplb_config(config, layer, moe)

    return run


@pytest.mark.parametrize("rank", range(4))
def test_it_starts_from_our_map(rank: int, tables: Callable[..., Any], tmp_path: Path) -> None:
    """Local slots are ours, tokens of every expert go to a slot that holds it, and the redundancy is counted right."""
    placement = small_placement(layer_ids=(1, 3))
    path = tmp_path / "map.json"
    path.write_bytes(get_exporter("vllm-ascend").export(placement).content)
    for layer, row in enumerate(placement.phy2log_LP):
        slot_GE, slot_E, log2phy_E, redundant = tables(path, layer, rank)
        assert redundant == 2
        for held, slots in zip(row.reshape(4, 2), slot_GE.numpy(), strict=True):
            assert np.flatnonzero(slots >= 0).tolist() == sorted(held)
            assert held[slots[slots >= 0]].tolist() == np.flatnonzero(slots >= 0).tolist()
        assert np.array_equal(slot_E.numpy(), slot_GE.numpy()[rank])
        assert row[log2phy_E.numpy()].tolist() == list(range(6))


@pytest.mark.parametrize(
    ("devices", "told"),
    [
        ([[0, 1], [2, 3], [4, -1], [0, 1]], "slot 5 holds id -1"),
        ([[0, 1], [2, 3], [4, 0], [0, 1]], "experts 5 have no slot"),
    ],
    ids=["negative id", "expert without a slot"],
)
def test_what_it_takes_in_silence_is_refused_here(
    devices: list[list[int]], told: str, tables: Callable[..., Any], tmp_path: Path
) -> None:
    """The engine makes a broken table without a word; `placement import` refuses it."""
    listed = [{"device_id": rank, "device_expert": held} for rank, held in enumerate(devices)]
    layer = {"layer_id": 0, "device_count": 4, "device_list": listed}
    content = json.dumps({"moe_layer_count": 1, "layer_list": [layer]}).encode()
    path = tmp_path / "map.json"
    path.write_bytes(content)
    assert tables(path, 0, 0) is not None
    with pytest.raises(MapError, match=told):
        imported(get_importer("vllm-ascend").read(content, ".json"), name="x", top_k=2, num_nodes=2, num_experts=6)


def test_its_table_is_broken_where_a_device_holds_an_expert_twice(tables: Callable[..., Any], tmp_path: Path) -> None:
    """So the export of such a map is refused: tokens would go to slots of other experts."""
    devices = [[0, 0], [1, 2], [3, 4], [5, 3]]
    listed = [{"device_id": rank, "device_expert": held} for rank, held in enumerate(devices)]
    layer = {"layer_id": 0, "device_count": 4, "device_list": listed}
    content = json.dumps({"moe_layer_count": 1, "layer_list": [layer]}).encode()
    path = tmp_path / "map.json"
    path.write_bytes(content)
    _, _, log2phy_E, _ = tables(path, 0, 0)
    assert np.array(devices).ravel()[log2phy_E.numpy()].tolist() != list(range(6))
    importer = get_importer("vllm-ascend")
    placement = imported(importer.read(content, ".json"), name="x", top_k=2, num_nodes=2, num_experts=6)
    with pytest.raises(MapError, match="GPU 0 holds expert 0 more than once"):
        get_exporter("vllm-ascend").export(placement)
