"""`placement.cost.draw_slots` again for ids that are on a GPU: the same slots, without a wait for the host.

One Triton kernel draws them where Triton is there; else torch does, in some hundred operations. Sets of nodes are tried
all at once: a table has the 2^N subsets of the nodes, so it is for few nodes.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from placement.core.cluster import Cluster
from placement.cost.choices.by_nodes import ByNodes
from placement.runtime.hash64_torch import GOLDEN, bit_count, mix, mix_int, remainder
from placement.runtime.kernels import has_triton
from placement.runtime.layer_map import LayerMap


class Tables(NamedTuple):
    """A map for one rank, on the device; C copies an expert at most.

    slot_EC    slots, a copy as often as its rank has slots for it; -1 where there are fewer
    node_EC    their nodes
    again_EC   whether a slot is on the rank of the one before it
    host_E     bits of the nodes that host the expert
    forced_E   the same where the expert has one copy, else 0
    nodes_E    bits of the nodes whose copies may serve it
    """

    slot_EC: Tensor
    node_EC: Tensor
    again_EC: Tensor
    host_E: Tensor
    forced_E: Tensor
    nodes_E: Tensor


class DeviceChooser:
    """The choices that allow nodes, with covers on few nodes alone.

    any_map  tables have room for every map of as many slots, so that `use` can write it there
    """

    def __init__(
        self,
        layer_map: LayerMap,
        rank: int,
        choice: ByNodes,
        cluster: Cluster,
        device: torch.device,
        *,
        any_map: bool = False,
    ) -> None:
        self._choice, self._cluster, self._home = choice, cluster, rank // layer_map.gpus_per_node
        self._by_cover, self._by_rank, self._num_nodes = choice.by_cover, choice.home_first, layer_map.num_nodes
        self._home_bit = 1 << self._home
        self._salt = torch.tensor(mix_int(rank), device=device)
        self._room = layer_map.num_slots - layer_map.num_experts + 1 if any_map else 0
        self._tables = Tables(*(one.to(device) for one in self._tables_of(layer_map)))
        self._subset_X = torch.arange(1 << layer_map.num_nodes, device=device) if choice.by_cover else None
        self.seen = torch.zeros((), dtype=torch.int64, device=device)

    def use(self, layer_map: LayerMap) -> None:
        """Choose by another map, as from the start; its tables are written to the memory of those before."""
        for mine, new in zip(self._tables, self._tables_of(layer_map), strict=True):
            mine.copy_(new)
        self.seen.zero_()

    def _tables_of(self, layer_map: LayerMap) -> Tables:
        """On the host."""
        tables = layer_map.tables
        slot_id, ends = (
            np.repeat(tables.slot_id, tables.slot_times),
            np.cumsum(tables.slot_times)[tables.slot_ptr_E[1:] - 1],
        )
        copies = [row.tolist() for row in np.split(slot_id, ends[:-1])]
        widest = max(self._room, *map(len, copies))
        slot_EC = torch.tensor([[*row, *[-1] * (widest - len(row))] for row in copies])
        allowed_E = self._choice.nodes_EH(tables.host_E, self._cluster)[:, self._home]
        host_E, nodes_E = (torch.tensor(one.astype("int64").tolist()) for one in (tables.host_E, allowed_E))
        return Tables(
            slot_EC=slot_EC,
            node_EC=torch.div(slot_EC.clamp(min=0), layer_map.slots_per_node, rounding_mode="floor"),
            again_EC=torch.diff(slot_EC, dim=1, prepend=torch.full((len(copies), 1), -1)) == 0,
            host_E=host_E,
            forced_E=host_E.masked_fill(torch.from_numpy(np.diff(tables.slot_ptr_E) != 1), 0),
            nodes_E=nodes_E,
        )

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
            self._tables._replace(again_EC=self._tables.again_EC.view(torch.uint8)),
            self._home_bit,
            self._num_nodes,
            by_cover=self._by_cover,
            by_rank=self._by_rank,
        )

    def in_torch(self, ids_TK: Tensor) -> Tensor:
        """The same in torch."""
        tables = self._tables
        routed = ids_TK >= 0
        ids = ids_TK.clamp(min=0).long()
        number = torch.arange(len(ids), device=ids.device) + self.seen
        word_T = mix(number * GOLDEN + self._salt)
        allowed = tables.nodes_E[ids].masked_fill(~routed, 0)
        if self._by_cover:
            host = tables.host_E[ids].masked_fill(~routed, 0)
            visited = self._visited(ids, host, word_T)[:, None]
            allowed = torch.where(allowed & self._home_bit != 0, allowed, allowed & visited)
        draw = mix(word_T[:, None] + (ids + 1) * GOLDEN)
        if self._by_cover:
            skip = remainder(draw, bit_count(allowed, self._num_nodes).clamp(min=1))
            for step in range(self._num_nodes - 1):
                allowed = torch.where(skip > step, allowed & (allowed - 1), allowed)
            allowed = allowed & -allowed
            draw = mix(draw)
        slots = tables.slot_EC[ids]
        usable = ((allowed[:, :, None] >> tables.node_EC[ids]) & 1).bool() & (slots >= 0)
        by_slot = torch.zeros_like(routed) if self._by_cover else routed
        if self._by_rank:
            by_slot = by_slot & (allowed & self._home_bit == 0)
        usable &= by_slot[:, :, None] | ~tables.again_EC[ids]
        skip = remainder(draw, usable.sum(dim=2).clamp(min=1))
        taken = usable & (usable.cumsum(dim=2) == skip[:, :, None] + 1)
        chosen = slots.masked_fill(~taken, 0).sum(dim=2)
        return chosen.masked_fill(~routed, -1)

    def _visited(self, ids: Tensor, host: Tensor, word_T: Tensor) -> Tensor:
        """Forced nodes and one of the smallest covers of the others' experts, int64 [T]."""
        assert self._subset_X is not None
        forced = torch.zeros_like(word_T)
        for column in self._tables.forced_E[ids].masked_fill(host == 0, 0).unbind(dim=1):
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
