"""`placement.cost.draw_slots` again in torch, for ids that are on a GPU: the same slots, without a wait for the host.

Sets of nodes are tried all at once: a table has the 2^N subsets of the nodes, so it is for few nodes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from placement.cost.covers import EXACT_NODES
from placement.cost.replica_choice import LOCAL_FIRST, MIN_NODES, UNIFORM
from placement.runtime.hash64_torch import GOLDEN, bit_count, mix, mix_int, remainder
from placement.runtime.layer_map import LayerMap


class DeviceChooser:
    """The choices `min-nodes`, `local-first` and `uniform`; `supports` tells for which maps."""

    def __init__(self, layer_map: LayerMap, rank: int, code: int, device: torch.device) -> None:
        tables = layer_map.tables
        self._code, self._num_nodes = code, layer_map.num_nodes
        self._home_bit = 1 << (rank // layer_map.gpus_per_node)
        self._salt = mix_int(rank)
        copies = [
            tables.slot_id[tables.slot_ptr_E[e] : tables.slot_ptr_E[e + 1]].tolist()
            for e in range(layer_map.num_experts)
        ]
        widest = max(map(len, copies))
        padded = torch.tensor([[*row, *[-1] * (widest - len(row))] for row in copies])
        self._slot_EC = padded.to(device)
        self._node_EC = torch.div(padded.clamp(min=0), layer_map.slots_per_node, rounding_mode="floor").to(device)
        self._host_E = torch.tensor(tables.host_E.astype("int64").tolist(), device=device)
        self._single_E = torch.tensor([len(row) == 1 for row in copies], device=device)
        self._subset_X = torch.arange(1 << layer_map.num_nodes, device=device) if code == MIN_NODES else None
        self.seen = torch.zeros((), dtype=torch.int64, device=device)

    @staticmethod
    def supports(layer_map: LayerMap, code: int) -> bool:
        return code in (LOCAL_FIRST, UNIFORM) or (code == MIN_NODES and layer_map.num_nodes <= EXACT_NODES)

    def __call__(self, ids_TK: Tensor) -> Tensor:
        """As `ReplicaChooser`; all on the device, so that a CUDA graph can capture it."""
        routed = ids_TK >= 0
        ids = ids_TK.clamp(min=0).long()
        host = self._host_E[ids].masked_fill(~routed, 0)
        number = torch.arange(len(ids), device=ids.device) + self.seen
        self.seen += len(ids)
        word_T = mix(number * GOLDEN + self._salt)
        at_home = host & self._home_bit
        allowed = host
        if self._code == MIN_NODES:
            allowed = host & self._visited(ids, host, word_T)[:, None]
        if self._code != UNIFORM:
            allowed = torch.where(at_home != 0, at_home, allowed)
        draw = mix(word_T[:, None] + (ids + 1) * GOLDEN)
        if self._code == MIN_NODES:
            skip = remainder(draw, bit_count(allowed, self._num_nodes).clamp(min=1))
            for step in range(self._num_nodes - 1):
                allowed = torch.where(skip > step, allowed & (allowed - 1), allowed)
            allowed = allowed & -allowed
            draw = mix(draw)
        slots = self._slot_EC[ids]
        usable = ((allowed[:, :, None] >> self._node_EC[ids]) & 1).bool() & (slots >= 0)
        skip = remainder(draw, usable.sum(dim=2).clamp(min=1))
        taken = usable & (usable.cumsum(dim=2) == skip[:, :, None] + 1)
        chosen = slots.masked_fill(~taken, 0).sum(dim=2)
        return chosen.masked_fill(~routed, -1)

    def _visited(self, ids: Tensor, host: Tensor, word_T: Tensor) -> Tensor:
        """Forced nodes and one of the smallest covers of the others' experts, int64 [T]."""
        assert self._subset_X is not None
        forced = torch.zeros_like(word_T)
        for column in (host.masked_fill(~self._single_E[ids], 0)).unbind(dim=1):
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
