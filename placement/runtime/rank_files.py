"""Weights of a rank's slots from the files that `placement apply` wrote."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from placement.core.migration import map_digest
from placement.core.placement import Placement
from placement.errors import InputError, MapError
from placement.runtime.checkpoint import CheckpointManifest, verify_applied
from placement.runtime.checkpoint.manifest import rank_file_name
from placement.runtime.slot_weights import SlotWeights

# which two tensors of a checkpoint make up the one that a module computes with, gate rows before up rows
_FUSED = {"gate_up_proj": (("gate_proj.weight", "up_proj.weight"), ("w1.weight", "w3.weight"))}
_RENAMED = {"down_proj": ("down_proj.weight", "w2.weight")}


class RankFiles:
    """One rank's file of a folder of `apply_map`, checked against the manifest; layers are read one by one."""

    def __init__(self, folder: str | Path, placement: Placement, rank: int) -> None:
        self._path = Path(folder) / rank_file_name(rank)
        self.manifest: CheckpointManifest = verify_applied(folder, only=self._path.name)
        if self.manifest.map != map_digest(placement):
            raise MapError(f"{folder} is cut by another map; run `placement apply` with this one")
        with safe_open(self._path, framework="pt") as file:
            self._names = list(file.keys())

    def weights(self, layer: int, wanted: Mapping[str, Any], device: torch.device) -> SlotWeights:
        """The tensors of a module whose parameters are `wanted`, in its order of dimensions and its types."""
        mine = [name for name in self._names if f"layers.{layer}." in name]
        by_part = {name.rpartition("experts.")[2]: name for name in mine}
        with safe_open(self._path, framework="pt") as file:
            read = {part: file.get_tensor(name) for part, name in by_part.items()}
        tensors = {}
        for key, parameter in wanted.items():
            if parameter is None:
                continue
            tensor = _find(read, key)
            if tensor is None or tensor.shape[1:] != parameter.shape[1:]:
                shape = None if tensor is None else list(tensor.shape)
                raise InputError(
                    f"{self._path}: layer {layer} has {', '.join(by_part)}; {key} of shape [S, *"
                    f"{list(parameter.shape[1:])}] cannot be made of them (found {shape}); is it of this model?"
                )
            tensors[key] = tensor.to(device=device, dtype=parameter.dtype)
        return SlotWeights(tensors)


def _find(read: Mapping[str, Tensor], key: str) -> Tensor | None:
    if key in read:
        return read[key]
    for pair in _FUSED.get(key, ()):
        if all(name in read for name in pair):
            return torch.cat([read[name] for name in pair], dim=1)
    return next((read[name] for name in _RENAMED.get(key, ()) if name in read), None)
