"""A checkpoint as one rank sees it: the experts of its slots under the numbers of the slots, and all other tensors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from placement.core.placement import Placement, check_same_slots
from placement.runtime.checkpoint.apply import check_map
from placement.runtime.checkpoint.layouts import TensorPart, find_experts
from placement.runtime.checkpoint.source import open_checkpoint
from placement.runtime.lazy_tensor import ByteSpan, LazyTensor, read_spans, torch_type
from placement.support.memory import give_back_freed

_EXPERTS = "experts."
GIVE_BACK_BYTES = 8 << 20  # after as much was read, what transformers has freed meanwhile goes back to the system


class SlotCheckpoint:
    """The tensors that a rank needs, under the names of a checkpoint of as many experts as the rank has slots.

    Args:
        checkpoint: Folder of a Hugging Face checkpoint in safetensors.
        placement: Which experts the slots hold; experts of other layers are left out.
        rank: The rank.

    Raises:
        InputError: The layout is not known, or a file is damaged.
        MapError: The map is for another model.
    """

    def __init__(self, checkpoint: str | Path, placement: Placement, rank: int) -> None:
        check_same_slots(placement, "a checkpoint read by map")
        source = open_checkpoint(checkpoint)
        self.folder = source.folder
        experts = find_experts(source.files, source.folder)
        check_map(experts, placement, source.folder)
        inside = frozenset[str]().union(*experts.names.values())
        self.tensors: dict[str, LazyTensor] = {}
        self.types: dict[str, str] = {}
        self._read_bytes = 0
        for file in source.files:
            for tensor in file.tensors:
                if tensor.name not in inside:
                    self._add(tensor.name, tensor.dtype, tensor.shape, ((file, tensor.begin, tensor.end),))
        slots = slice(rank * placement.slots_per_gpu, (rank + 1) * placement.slots_per_gpu)
        for layer, held in zip(placement.model.layer_ids, placement.phy2log_LP[:, slots].tolist(), strict=True):
            for part in experts.layers[layer]:
                self._add_part(part, held, stacked=part.name in inside)

    def dtype(self) -> torch.dtype:
        """The type of the first tensor of real numbers that is not quantized."""
        found = (torch_type(dtype, f"{self.folder}: {name}") for name, dtype in self.types.items())
        return next((one for one in found if one.is_floating_point and one.itemsize > 1), torch.float32)

    def _add_part(self, part: TensorPart, held: list[int], *, stacked: bool) -> None:
        if stacked:
            self._add(part.name, part.dtype, (len(held), *part.shape), tuple(part.spans[e] for e in held))
            return
        before, _, after = part.name.rpartition(_EXPERTS)
        for slot, expert in enumerate(held):
            self._add(f"{before}{_EXPERTS}{slot}.{after}", part.dtype, part.shape, (part.spans[expert],))

    def _add(self, name: str, dtype: str, shape: tuple[int, ...], spans: tuple[ByteSpan, ...]) -> None:
        kind = torch_type(dtype, f"{self.folder}: {name}")
        self.types[name] = dtype
        self.tensors[name] = LazyTensor(partial(self._read, spans, kind, shape))

    def _read(self, spans: tuple[ByteSpan, ...], dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        if self._read_bytes > GIVE_BACK_BYTES:
            give_back_freed()
            self._read_bytes = 0
        tensor = read_spans(spans, dtype, shape)
        self._read_bytes += tensor.nbytes
        return tensor
