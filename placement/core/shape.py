"""How many nodes, GPUs and slots there are, and which lies where."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`num_nodes` machines of `gpus_per_node` GPUs (ranks); every rank has `slots_per_gpu` slots in each layer.

    Ranks are numbered node by node; slot `p` of a layer is on rank `p // slots_per_gpu`.
    """

    num_nodes: int
    gpus_per_node: int
    slots_per_gpu: int

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.gpus_per_node

    @property
    def num_slots(self) -> int:
        return self.num_ranks * self.slots_per_gpu

    @property
    def slots_per_node(self) -> int:
        return self.gpus_per_node * self.slots_per_gpu

    @property
    def shape(self) -> tuple[int, int, int]:
        """(nodes, GPUs of a node, slots of a GPU): equal for equal shapes."""
        return self.num_nodes, self.gpus_per_node, self.slots_per_gpu

    def sizes(self) -> dict[str, int]:
        """By name, to make another object of the same shape."""
        return dict(zip(("num_nodes", "gpus_per_node", "slots_per_gpu"), self.shape, strict=True))

    def slots_of_rank(self, rank: int) -> range:
        return range(rank * self.slots_per_gpu, (rank + 1) * self.slots_per_gpu)

    def rank_of_slot_P(self) -> npt.NDArray[np.int64]:
        return np.arange(self.num_slots) // self.slots_per_gpu

    def node_of_rank_G(self) -> npt.NDArray[np.int64]:
        return np.arange(self.num_ranks) // self.gpus_per_node
