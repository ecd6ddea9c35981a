"""Lookup tables of one layer's map, in the form that the kernels read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.core.shape import Shape


class LayerTables(NamedTuple):
    """Where the copies of each expert of one layer are.

    slot_ptr_E  int64 [E+1], expert e's copies are entries slot_ptr[e] : slot_ptr[e+1] of the next three
    slot_id     int64 [P], slot of each copy, grouped by expert, ascending
    slot_rank   int32 [P], rank of each copy, grouped by expert
    slot_node   int32 [P], node of each copy
    host_E      uint64 [E], bit n set if node n hosts the expert
    num_nodes, num_ranks: N, G
    """

    slot_ptr_E: npt.NDArray[np.int64]
    slot_id: npt.NDArray[np.int64]
    slot_rank: npt.NDArray[np.int32]
    slot_node: npt.NDArray[np.int32]
    host_E: npt.NDArray[np.uint64]
    num_nodes: int
    num_ranks: int

    @property
    def one_copy(self) -> bool:
        """True if every expert has one slot."""
        return len(self.slot_id) == len(self.host_E)


def layer_tables(phy2log_P: npt.NDArray[np.integer], num_experts: int, shape: Shape) -> LayerTables:
    slots = np.argsort(phy2log_P, kind="stable")
    rank = (slots // shape.slots_per_gpu).astype(np.int32)
    node = (rank // shape.gpus_per_node).astype(np.int32)
    copies = np.bincount(phy2log_P, minlength=num_experts)
    host_E = np.zeros(num_experts, dtype=np.uint64)
    np.bitwise_or.at(host_E, phy2log_P[slots], np.uint64(1) << node.astype(np.uint64))
    return LayerTables(
        slot_ptr_E=np.concatenate([[0], np.cumsum(copies)]).astype(np.int64),
        slot_id=slots,
        slot_rank=rank,
        slot_node=node,
        host_E=host_E,
        num_nodes=shape.num_nodes,
        num_ranks=shape.num_ranks,
    )
