"""Maps for the checkpoints of these tests, and what the files of ranks hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from checkpoints import EXPERTS, LAYERS

from placement import Model, Placement

KINDS = ("olmoe", "mixtral", "deepseek-fp8", "gpt-oss", "mxfp4")


def make_map(*, layer_ids: tuple[int, ...] = LAYERS, num_experts: int = EXPERTS, seed: int = 0) -> Placement:
    """Two ranks of four slots: two experts have two copies."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in layer_ids:
        order = rng.permutation(num_experts)
        rows.append(np.concatenate([order, order[:2]]))
    model = Model(name="tiny", layer_ids=layer_ids, num_experts=num_experts, top_k=2)
    return Placement(
        model=model, num_nodes=2, gpus_per_node=1, slots_per_gpu=(num_experts + 2) // 2, phy2log_LP=np.stack(rows)
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def slots_of(path: Path) -> dict[str, tuple[str, list[int], bytes]]:
    """Every tensor of a file as the safetensors format has it: type, shape, bytes."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    header.pop("__metadata__")
    return {
        name: (entry["dtype"], entry["shape"], data[8 + size :][slice(*entry["data_offsets"])])
        for name, entry in header.items()
    }


def expert_bytes(layout: str, tensors: dict[str, Any], name: str, expert: int) -> bytes:
    """What the rank file's tensor `name` holds of an expert, by the checkpoint."""
    if layout in ("gpt-oss", "mxfp4"):
        data: bytes = tensors[name][2]
        size = len(data) // EXPERTS
        return data[expert * size : (expert + 1) * size]
    single: bytes = tensors[name.replace(".experts.", f".experts.{expert}.")][2]
    return single
