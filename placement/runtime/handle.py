"""What is known after a dispatch: copies that came, and how sums find their way back. Neither can be changed."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from placement.runtime.hop import HopHandle
from placement.runtime.wire import Wire


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """Copies of tokens on the rank that serves them; tensors may lie in buffers that the next dispatch writes to.

    Attributes:
        hidden: Hidden states, [R, D], one row a copy.
        local: This rank's slot of each assignment, from 0, int64 [R, K]; slots_per_gpu for those that others serve.
        weights: Weights of the assignments, fp32 [R, K].
        hops: The hops, in the order in which rows went.
    """

    wire: Wire
    hops: tuple[HopHandle, ...]
    hidden: Tensor
    local: Tensor
    weights: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchHandle:
    """What `combine` needs to know of a dispatch; it serves once or many times.

    Attributes:
        num_rows: Copies of tokens that came to this rank.
        row_A: Copy that each dispatched row repeats, int64 [A].
        weight_A: Weight of each dispatched row, fp32 [A].
    """

    wire: Wire
    hops: tuple[HopHandle, ...]
    num_rows: int
    row_A: Tensor
    weight_A: Tensor

    def copies(self, hop: int) -> dict[int, int]:
        """Copies of tokens that this rank sent in that hop, by rank that got them, its own included."""
        one = self.hops[hop]
        return dict(zip(one.group.ranks, one.announced.send_rows, strict=True))

    def sent_bytes(self, gpus_per_node: int, rank: int) -> tuple[int, int]:
        """Bytes of this rank's copies that (leave its node, stay inside it), there and back, without headers."""
        across = within = 0
        for hop in range(len(self.hops)):
            for other, copies in self.copies(hop).items():
                size = copies * (self.wire.row_bytes + self.wire.return_bytes)
                if other // gpus_per_node != rank // gpus_per_node:
                    across += size
                elif other != rank:
                    within += size
        return across, within
