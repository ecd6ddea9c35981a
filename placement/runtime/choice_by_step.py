"""Replica choice by the counts of a step: ranks tell one another what their tokens ask for, and share it out alike."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from placement.cost.kernel_balanced import RunningLoad
from placement.cost.step_groups import StepGroups, ask_step, shares_of_step, take_slots
from placement.runtime.header import Exchange, announce, settled_error
from placement.runtime.layer_map import LayerMap
from placement.runtime.transport.base import Group


class StepChooser:
    """Slots for one rank's part of a step; all ranks call it, without tokens too. Two exchanges and two waits a call.

    groups   of the layer, the same on all ranks
    running  goes on from call to call: it numbers the tokens
    """

    def __init__(self, layer_map: LayerMap, groups: StepGroups, running: RunningLoad, world: Group) -> None:
        self._map, self._groups, self._running, self._world = layer_map, groups, running, world
        self._step = 0

    def __call__(self, ids_TK: Tensor) -> Tensor:
        """Raises RankError, on every rank, if one has another map, is at another layer, or does not come in time."""
        groups, size, device = self._groups, len(self._world.ranks), ids_TK.device
        ids = ids_TK.detach().to("cpu", torch.int64).contiguous().numpy()
        group_TK, slot_TK = np.empty((2, *ids.shape), dtype=np.int32)
        asked_X = np.zeros(groups.size + size, dtype=np.int64)
        rank = self._world.ranks[self._world.rank]
        ask_step(rank, self._map.tables, groups, ids, self._running, group_TK, slot_TK, asked_X)
        self._agree(device, len(asked_X))
        told = self._world.all_to_all(torch.from_numpy(asked_X).to(device).repeat(size, 1))
        asked_GX = np.array(self._world.host(told), dtype=np.int64)
        share_C = shares_of_step(groups, asked_GX, self._running.slowness_G)
        before_J = asked_GX[: self._world.rank, : groups.size].sum(axis=0)
        take_slots(groups, share_C, before_J, group_TK, slot_TK)
        return torch.from_numpy(slot_TK).to(device, torch.int64)

    def _agree(self, device: torch.device, numbers: int) -> None:
        """Headers first: ranks with other maps would have rows of another length."""
        exchange = Exchange(version=self._map.version, layer=self._map.layer, step=self._step, row_kind=numbers)
        self._step += 1
        nothing = torch.zeros(len(self._world.ranks), dtype=torch.int64, device=device)
        announced = announce(self._world, exchange, nothing, nothing, 0, 0)
        if announced.fault:
            raise settled_error(announced, self._world, self._world, exchange, self._map.num_experts, device)
