"""The weights in a rank's slots, as tensors to compute with and as rows of bytes to move."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from placement.errors import OptionError


class SlotWeights:
    """One layer's weights on one rank: named tensors [S, ...], row s for slot s.

    `slot_bytes` are the bytes of one slot, its tensors one after another in the order of their names.

    Args:
        tensors: The weights by name, [S, ...].
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors = {name: tensors[name].contiguous() for name in sorted(tensors)}
        sizes = {len(tensor) for tensor in self.tensors.values()}
        if len(sizes) != 1:
            shapes = {name: list(tensor.shape) for name, tensor in self.tensors.items()}
            raise OptionError(f"weights of slots have shapes {shapes}; all need one row a slot, [S, ...]")
        self.num_slots = sizes.pop()
        self.slot_bytes = sum(tensor[0].nbytes for tensor in self.tensors.values())

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(iter(self.tensors.values())).device

    @torch.no_grad()
    def read(self, slot: int, row: Tensor) -> None:
        """Copy the slot's weights to `row`, uint8 [slot_bytes]."""
        for mine, part in self._pieces(slot, row):
            part.copy_(mine)

    @torch.no_grad()
    def write(self, slot: int, row: Tensor) -> None:
        """Copy `row`, uint8 [slot_bytes], to the slot's weights."""
        for mine, part in self._pieces(slot, row):
            mine.copy_(part)

    def _pieces(self, slot: int, row: Tensor) -> list[tuple[Tensor, Tensor]]:
        parts = [tensor[slot].reshape(-1).view(torch.uint8) for tensor in self.tensors.values()]
        return list(zip(parts, row.split([part.numel() for part in parts]), strict=True))


def row_digest(row: Tensor) -> bytes:
    """SHA-256 of a row of bytes."""
    return hashlib.sha256(row.cpu().numpy().data).digest()
