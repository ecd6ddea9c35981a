"""`placement.cost.draw_slots` again for ids that are on a GPU: the same slots, without a wait for the host.

One Triton kernel draws them where Triton is there; else torch does, in some hundred operations. Sets of nodes are tried
all at once: a table has the 2^N subsets of the nodes, so it is for few nodes.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from placement.core.cluster import Cluster
from placement.cost.choices.by_nodes import ByNodes
from placement.runtime.hash64_torch import GOLDEN, bit_count, mix, mix_int, remainder
from placement.runtime.kernels import has_triton
from placement.runtime.layer_map import LayerMap


class DeviceChooser:
    """The choices that allow nodes, with covers on few nodes alone."""

    def __init__(self, layer_map: LayerMap, rank: int, choice: ByNodes, cluster: Cluster, device: torch.device) -> None:
        tables = layer_map.tables
        self._by_cover, self._by_rank, self._num_nodes = choice.by_cover, choice.home_first, layer_map.num_nodes
        self._home_bit = 1 << (rank // layer_map.gpus_per_node)
        self._salt = torch.tensor(mix_int(rank), device=device)
        slot_id, ends = (
            np.repeat(tables.slot_id, tables.slot_times),
            np.cumsum(tables.slot_times)[tables.slot_ptr_E[1:] - 1],
        )
        copies = [row.tolist() for row in np.split(slot_id, ends[:-1])]  # a copy as often as its rank has slots for it
        widest = max(map(len, copies))
        padded = torch.tensor([[*row, *[-1] * (widest - len(row))] for row in copies])
        self._slot_EC = padded.to(device)
        self._node_EC = torch.div(padded.clamp(min=0), layer_map.slots_per_node, rounding_mode="floor").to(device)
        nodes_E = choice.nodes_EH(tables.host_E, cluster)[:, rank // layer_map.gpus_per_node]
        self._host_E, self._nodes_E = (
            torch.tensor(one.astype("int64").tolist(), device=device) for one in (tables.host_E, nodes_E)
        )
        self._again_EC = (torch.diff(padded, dim=1, prepend=torch.full((len(copies), 1), -1)) == 0).to(device)
        one_copy_E = torch.from_numpy(np.diff(tables.slot_ptr_E) == 1).to(device)
        self._forced_E = self._host_E.masked_fill(~one_copy_E, 0)
        self._subset_X = torch.arange(1 << layer_map.num_nodes, device=device) if choice.by_cover else None
        self.seen = torch.zeros((), dtype=torch.int64, device=device)

    def __call__(self, ids_TK: Tensor) -> Tensor:
        """As `ReplicaChooser`; all on the device, so that a CUDA graph can capture it."""
        slot_TK = self.by_kernel(ids_TK.long()) if ids_TK.is_cuda and has_triton() else self.in_torch(ids_TK)
        self.seen += len(ids_TK)
        return slot_TK

    def by_kernel(self, ids_TK: Tensor) -> Tensor:
        """The slots of the next tokens, by one kernel."""
        from placement.runtime.kernels import gpu_choice

        return gpu_choice.choose(
            ids_TK,
            self.seen,
            self._salt,
            (
                self._slot_EC,
                self._node_EC,
                self._again_EC.view(torch.uint8),
                self._host_E,
                self._forced_E,
                self._nodes_E,
            ),
            self._home_bit,
            self._num_nodes,
            by_cover=self._by_cover,
            by_rank=self._by_rank,
        )

    def in_torch(self, ids_TK: Tensor) -> Tensor:
        """The same in torch."""
        routed = ids_TK >= 0
        ids = ids_TK.clamp(min=0).long()
        number = torch.arange(len(ids), device=ids.device) + self.seen
        word_T = mix(number * GOLDEN + self._salt)
        allowed = self._nodes_E[ids].masked_fill(~routed, 0)
        if self._by_cover:
            host = self._host_E[ids].masked_fill(~routed, 0)
            visited = self._visited(ids, host, word_T)[:, None]
            allowed = torch.where(allowed & self._home_bit != 0, allowed, allowed & visited)
        draw = mix(word_T[:, None] + (ids + 1) * GOLDEN)
        if self._by_cover:
            skip = remainder(draw, bit_count(allowed, self._num_nodes).clamp(min=1))
            for step in range(self._num_nodes - 1):
                allowed = torch.where(skip > step, allowed & (allowed - 1), allowed)
            allowed = allowed & -allowed
            draw = mix(draw)
        slots = self._slot_EC[ids]
        usable = ((allowed[:, :, None] >> self._node_EC[ids]) & 1).bool() & (slots >= 0)
        by_slot = torch.zeros_like(routed) if self._by_cover else routed
        if self._by_rank:
            by_slot = by_slot & (allowed & self._home_bit == 0)
        usable &= by_slot[:, :, None] | ~self._again_EC[ids]
        skip = remainder(draw, usable.sum(dim=2).clamp(min=1))
        taken = usable & (usable.cumsum(dim=2) == skip[:, :, None] + 1)
        chosen = slots.masked_fill(~taken, 0).sum(dim=2)
        return chosen.masked_fill(~routed, -1)

    def _visited(self, ids: Tensor, host: Tensor, word_T: Tensor) -> Tensor:
        """Forced nodes and one of the smallest covers of the others' experts, int64 [T]."""
        assert self._subset_X is not None
        forced = torch.zeros_like(word_T)
        for column in self._forced_E[ids].masked_fill(host == 0, 0).unbind(dim=1):
            forced = forced | column
        open_TK = (host != 0) & (host & (forced | self._home_bit)[:, None] == 0)
        covers = torch.ones((len(ids), len(self._subset_X)), dtype=torch.bool, device=ids.device)
        for column, is_open in zip(host.unbind(dim=1), open_TK.unbind(dim=1), strict=True):
            covers &= ~is_open[:, None] | (column[:, None] & self._subset_X != 0)
        size_X = bit_count(self._subset_X, self._num_nodes)
        size_TX = torch.where(covers, size_X, self._num_nodes + 1)
        least = size_TX.amin(dim=1)
        smallest = size_TX == least[:, None]
        found = smallest.sum(dim=1)
        drawn = remainder(word_T, found)
        drawn = torch.where(least >= 2, found - 1 - drawn, drawn)  # `smallest_covers` lists these from above
        taken = smallest & (smallest.cumsum(dim=1) == drawn[:, None] + 1)
        return forced | torch.where(taken, self._subset_X, 0).sum(dim=1)
