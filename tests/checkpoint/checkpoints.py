"""Small checkpoints in the layouts that models have on disk, written without the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, EXPERTS, HIDDEN, INNER = (1, 2), 6, 8, 4


def raw(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> tuple[str, tuple[int, ...], bytes]:
    size = {"F32": 4, "BF16": 2, "F8_E4M3": 1, "U8": 1}[dtype] * int(np.prod(shape))
    return dtype, shape, rng.bytes(size)


def tensors_of(layout: str, rng: np.random.Generator) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Experts in layers 1 and 2, a dense layer 0, and tensors that look a little like experts."""
    found = {
        "model.embed_tokens.weight": raw(rng, "BF16", (5, HIDDEN)),
        "model.layers.0.mlp.gate_proj.weight": raw(rng, "BF16", (INNER, HIDDEN)),
        "model.layers.1.mlp.shared_experts.gate_proj.weight": raw(rng, "BF16", (INNER, HIDDEN)),
        "model.layers.1.mlp.gate.e_score_correction_bias": raw(rng, "F32", (EXPERTS,)),
        "lm_head.empty": ("F32", (0,), b""),
    }
    for layer in LAYERS:
        mlp = f"model.layers.{layer}.mlp.experts"
        if layout == "gpt-oss":
            for name, shape in (
                ("gate_up_proj", (EXPERTS, HIDDEN, 2 * INNER)),
                ("gate_up_proj_bias", (EXPERTS, 2 * INNER)),
                ("down_proj", (EXPERTS, INNER, HIDDEN)),
                ("down_proj_bias", (EXPERTS, HIDDEN)),
            ):
                found[f"{mlp}.{name}"] = raw(rng, "BF16", shape)
        elif layout == "mxfp4":
            for name in ("gate_up_proj", "down_proj"):
                found[f"{mlp}.{name}_blocks"] = raw(rng, "U8", (EXPERTS, HIDDEN, 1, 3))
                found[f"{mlp}.{name}_scales"] = raw(rng, "U8", (EXPERTS, HIDDEN, 1))
                found[f"{mlp}.{name}_bias"] = raw(rng, "BF16", (EXPERTS, HIDDEN))
        else:
            for expert in range(EXPERTS):
                if layout == "mixtral":
                    block = f"model.layers.{layer}.block_sparse_moe.experts.{expert}"
                    names = {"w1": (INNER, HIDDEN), "w2": (HIDDEN, INNER), "w3": (INNER, HIDDEN)}
                else:
                    block = f"{mlp}.{expert}"
                    names = {"gate_proj": (INNER, HIDDEN), "up_proj": (INNER, HIDDEN), "down_proj": (HIDDEN, INNER)}
                for name, shape in names.items():
                    if layout == "deepseek-fp8":
                        found[f"{block}.{name}.weight"] = raw(rng, "F8_E4M3", shape)
                        found[f"{block}.{name}.weight_scale_inv"] = raw(rng, "F32", (1, 1))
                    else:
                        found[f"{block}.{name}.weight"] = raw(rng, "BF16", shape)
    return found


def write_file(path: Path, tensors: dict[str, tuple[str, tuple[int, ...], bytes]]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    body = b"".join(data for _, _, data in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)


def write_checkpoint(folder: Path, layout: str, *, shards: int = 1, seed: int = 0) -> Path:
    """Tensors in random order, as one file or as shards with an index, beside a configuration."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    tensors = tensors_of(layout, rng)
    names = [list(tensors)[i] for i in rng.permutation(len(tensors))]
    (folder / "config.json").write_text('{"model_type": "tiny"}')
    if shards == 1:
        write_file(folder / "model.safetensors", {name: tensors[name] for name in names})
        return folder
    weight_map = {}
    for shard, part in enumerate(np.array_split(np.array(names), shards)):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        write_file(folder / file, {name: tensors[name] for name in part.tolist()})
        weight_map |= dict.fromkeys(part.tolist(), file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder
