"""Slots whose weights say what they are, and maps to swap between."""

from __future__ import annotations

from typing import Any

import numpy as np
from moe import make_placement, torch

from placement import Placement
from placement.runtime import Mesh, SlotWeights
from placement.runtime.swap import DIGEST_BYTES

LAYERS, EXPERTS = 3, 12
ROW = 4 * 6 + 2 * 5 + DIGEST_BYTES


class Holder:
    """A rank's slots; the weights of an expert say its layer and number."""

    def __init__(self, placement: Placement, mesh: Mesh) -> None:
        self.placement, self.mesh = placement, mesh
        slots = slice(mesh.rank * placement.slots_per_gpu, (mesh.rank + 1) * placement.slots_per_gpu)
        self.slots_L = [
            SlotWeights({name: weights(name, layer, row) for name in ("up", "down")})
            for layer, row in enumerate(placement.phy2log_LP[:, slots].tolist())
        ]

    def use(self, placement: Placement) -> None:
        self.placement = placement

    def right(self) -> bool:
        """Every slot has the weights of the expert that the map in force says."""
        mine = Holder(self.placement, self.mesh)
        return all(
            torch.equal(one.tensors[name], other.tensors[name])
            for one, other in zip(self.slots_L, mine.slots_L, strict=True)
            for name in one.tensors
        )


def weights(name: str, layer: int, held: list[int]) -> Any:
    """fp32 [S, 2, 3] or bf16 [S, 5]."""
    shape, dtype = ((2, 3), torch.float32) if name == "up" else ((5,), torch.bfloat16)
    return torch.stack([torch.full(shape, layer * EXPERTS + expert, dtype=dtype) for expert in held])


def maps(num_nodes: int = 2, gpus: int = 2, slots: int = 4, *, seeds: tuple[int, int] = (0, 1)) -> list[Placement]:
    return [make_placement(num_nodes, gpus, slots, EXPERTS, 3, seed=seed, layers=LAYERS) for seed in seeds]


def same_up_to_order(one: Placement, other: Placement) -> bool:
    """Every rank holds the same experts."""
    shape = (LAYERS, one.num_ranks, -1)
    return np.array_equal(np.sort(one.phy2log_LP.reshape(shape)), np.sort(other.phy2log_LP.reshape(shape)))
