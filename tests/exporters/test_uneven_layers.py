"""Files whose layers differ in slots: MTP layers with fewer experts a device, redundant experts in one layer only."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from engine_files import npy

from placement.core.model import Model
from placement.core.placement import Placement
from placement.documents.placement import load_placement
from placement.errors import MapError
from placement.exporters import EXPORTERS, get_exporter, get_importer
from placement.exporters.imports import imported
from placement.testing.exporters import exported

# layer 0 has 2 redundant experts, layers 1 and 2 have none: GPUs have 2 slots, then 1 less
UNEVEN = [[0, 1, 2, 3, 0, 2], [3, 2, 1, 0], [0, 1, 2, 3]]


def uneven_files() -> dict[str, bytes]:
    """MTP layers with fewer experts a device (vllm-ascend#8710); redundant experts in one layer only (omni-infer)."""
    held_LGS = [np.array(row).reshape(2, -1).tolist() for row in UNEVEN]
    layers = [
        {
            "layer_id": index,
            "device_count": 2,
            "device_list": [{"device_id": rank, "device_expert": held} for rank, held in enumerate(held_GS)],
        }
        for index, held_GS in enumerate(held_LGS)
    ]
    holds_GLE = np.zeros((2, 3, 4), dtype=np.int32)
    for layer, held_GS in enumerate(held_LGS):
        for rank, held in enumerate(held_GS):
            holds_GLE[rank, layer, held] = 1
    document = {"moe_layer_count": 3, "layer_list": layers}
    return {"vllm-ascend": json.dumps(document, separators=(",", ":")).encode() + b"\n", "omni-infer": npy(holds_GLE)}


@pytest.mark.parametrize("name", ["vllm-ascend", "omni-infer"])
def test_layers_may_differ_in_slots(name: str, tmp_path: Path) -> None:
    """Such a file is read, and written as it was; as a placement file too; other engines' files cannot say it."""
    content = uneven_files()[name]
    importer = get_importer(name)
    placement = imported(importer.read(content, importer.suffixes[0]), name="m", top_k=2, num_nodes=1)
    assert placement.slots_L.tolist() == [3, 2, 2]
    held = [[set(one) - {-1} for one in row] for row in placement.phy2log_LP.reshape(3, 2, 3).tolist()]
    assert held == [[set(one) for one in np.array(row).reshape(2, -1).tolist()] for row in UNEVEN]
    assert placement.copies_LE().tolist() == [[2, 1, 2, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert not placement.wasted_LP().any()
    export = get_exporter(name).export(placement)
    assert export.content == content
    assert any("redundant experts: 2 in layer 0, 0 in layers 1 to 2" in hint for hint in export.hints)
    (tmp_path / "p.json").write_bytes(get_exporter("native").export(placement).content)
    assert np.array_equal(load_placement(tmp_path / "p.json")[0].phy2log_LP, placement.phy2log_LP)
    for other in set(EXPORTERS) - {"vllm-ascend", "omni-infer", "native"}:
        with pytest.raises(
            MapError, match=r"slots of a GPU differ from layer to layer \(3 in layer 0; 2 in layers 1 to 2"
        ):
            exported(get_exporter(other), placement)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ([0, 1, -1, 2, 3, 0], "slot 2 holds id -1"),  # rank 1 has a third slot
        ([0, -1, 1, 2, 3, -1], "slot 1 holds id -1"),  # not the last slot of rank 0
        ([0, 1, 2, 3, 0, -2], "slot 5 holds id -2"),
        ([-1] * 6, "experts 0, 1, 2, 3 have no slot"),
    ],
)
def test_only_the_last_slots_of_all_ranks_may_be_left_out(row: list[int], told: str) -> None:
    """An id below 0 elsewhere is a fault, in placement files too."""
    model = Model(name="m", layer_ids=(0,), num_experts=4, top_k=2)
    with pytest.raises(MapError, match=told):
        Placement(model=model, num_nodes=1, gpus_per_node=2, slots_per_gpu=3, phy2log_LP=np.array([row]))
