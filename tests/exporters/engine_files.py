"""Files as engines define them, written without the exporters, and how they are read back."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save

from placement.core.placement import Placement
from placement.exporters import EXPORTERS, get_exporter, get_importer
from placement.exporters.base import Importer
from placement.exporters.imports import imported

GOLDEN = [[0, 1, 2, 3, 4, 5, 0, 1], [5, 4, 3, 2, 1, 0, 5, 4]]

READABLE = [name for name in EXPORTERS if isinstance(get_exporter(name), Importer)]

Rows = list[list[Any]]


def ascend(rows: Rows) -> bytes:
    layers = []
    for index, row in enumerate(rows):
        held = [row[rank * 2 : rank * 2 + 2] for rank in range((len(row) + 1) // 2)]
        listed = [{"device_id": rank, "device_expert": experts} for rank, experts in enumerate(held)]
        layers.append({"layer_id": index, "device_count": len(held), "device_list": listed})
    return json.dumps({"moe_layer_count": len(rows), "layer_list": layers}).encode()


def tensorrt(rows: Rows) -> bytes:
    assignments = dict(enumerate(rows))
    return yaml.safe_dump(
        {"num_slots": len(rows[0]) if rows else 0, "initial_global_assignments": assignments}
    ).encode()


def eplb(rows: Rows) -> bytes:
    """The tables are those of the golden map wherever the rows are not."""
    log2phy = np.full((2, 6, 2), -1)
    for layer, row in enumerate(GOLDEN):
        for slot, expert in enumerate(row):
            log2phy[layer, expert, int(log2phy[layer, expert, 0] >= 0)] = slot
    logcnt = (log2phy >= 0).sum(axis=2)
    return save({"phy2log": np.array(rows), "log2phy": log2phy, "logcnt": logcnt})


def hygon(rows: Rows) -> bytes:
    slots = len(rows[0]) if rows else 0
    counts = {"num_moe_layers": len(rows), "num_physical_experts": slots, "num_redundant_experts": slots - 6}
    entry = {"num_logical_experts": 6, **counts, "physical_to_logical_map": rows}
    return json.dumps({"version": 2, "model_maps": {"Moe": entry}}).encode()


WRITERS: dict[str, Callable[[Rows], bytes]] = {
    "sglang": lambda rows: json.dumps({"physical_to_logical_map": rows}).encode(),
    "vllm": lambda rows: json.dumps(rows).encode(),
    "vllm-ascend": ascend,
    "vllm-hygon": hygon,
    "tensorrt-llm": tensorrt,
    "deepseek-eplb": eplb,
}


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npz(arrays: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def read(name: str, content: bytes, **options: Any) -> Placement:
    importer = get_importer(name)
    told: dict[str, Any] = {"name": "golden", "top_k": 2, "num_nodes": 2, "gpus_per_node": 2, "num_experts": 6}
    return imported(importer.read(content, importer.suffixes[0]), **(told | options))


def changed(layer: int, slot: int, value: Any) -> Rows:
    rows: Rows = [list(row) for row in GOLDEN]
    rows[layer][slot] = value
    return rows
