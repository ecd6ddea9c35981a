"""Lookup tables of one layer's map, in the form that the kernels read."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.core.shape import Shape
from placement.support.kernel import inlined_kernel


class LayerTables(NamedTuple):
    """Where the copies of each expert of one layer are. Slots of an expert on one rank are one copy, in the first.

    slot_ptr_E  int64 [E+1], expert e's copies are entries slot_ptr[e] : slot_ptr[e+1] of the next four
    slot_id     int64 [C], slot of each of the C copies, grouped by expert, ascending
    slot_rank   int32 [C], rank of each copy, grouped by expert
    slot_node   int32 [C], node of each copy
    slot_times  int64 [C], how many slots of the rank hold the expert, for rules that draw among all slots: mostly 1
    host_E      uint64 [E], bit n set if node n hosts the expert
    num_nodes, num_ranks: N, G
    """

    slot_ptr_E: npt.NDArray[np.int64]
    slot_id: npt.NDArray[np.int64]
    slot_rank: npt.NDArray[np.int32]
    slot_node: npt.NDArray[np.int32]
    slot_times: npt.NDArray[np.int64]
    host_E: npt.NDArray[np.uint64]
    num_nodes: int
    num_ranks: int

    @property
    def one_copy(self) -> bool:
        """True if every expert has one copy."""
        return len(self.slot_id) == len(self.host_E)

    def most_times_E(self) -> npt.NDArray[np.int64]:
        """The most slots that one rank has of each expert, int64 [E]."""
        return np.maximum.reduceat(self.slot_times, self.slot_ptr_E[:-1])


def layer_tables(phy2log_P: npt.NDArray[np.integer], num_experts: int, shape: Shape) -> LayerTables:
    order = np.argsort(phy2log_P, kind="stable")
    order = order[np.count_nonzero(phy2log_P < 0) :]  # without places where the layer has no slot
    expert, rank = phy2log_P[order], order // shape.slots_per_gpu
    new = (expert[1:] != expert[:-1]) | (rank[1:] != rank[:-1])
    first = np.concatenate([[0], np.flatnonzero(new) + 1])
    slots, expert, rank = order[first], expert[first], rank[first]
    node = (rank // shape.gpus_per_node).astype(np.int32)
    host_E = np.zeros(num_experts, dtype=np.uint64)
    np.bitwise_or.at(host_E, expert, np.uint64(1) << node.astype(np.uint64))
    return LayerTables(
        slot_ptr_E=np.concatenate([[0], np.cumsum(np.bincount(expert, minlength=num_experts))]).astype(np.int64),
        slot_id=slots,
        slot_rank=rank.astype(np.int32),
        slot_node=node,
        slot_times=np.diff(np.append(first, len(order))),
        host_E=host_E,
        num_nodes=shape.num_nodes,
        num_ranks=shape.num_ranks,
    )


@inlined_kernel
def copies_beside(s: int, e: int, tables: LayerTables) -> int:
    """Copies of expert e on the node of its copy s, with that one."""
    copies = 0
    for other in range(tables.slot_ptr_E[e], tables.slot_ptr_E[e + 1]):
        if tables.slot_node[other] == tables.slot_node[s]:
            copies += 1
    return copies
