"""Which copy serves each expert of a rank's tokens: the function that the cost model evaluates."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from placement.core.choices import REPLICA_CHOICE
from placement.core.cluster import Cluster
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.kernel_balanced import RunningLoad
from placement.errors import OptionError
from placement.runtime.choice_by_step import StepChooser
from placement.runtime.layer_map import LayerMap
from placement.runtime.transport.base import Group
from placement.support.registry import attribute

if TYPE_CHECKING:
    from placement.runtime.choice_on_device import DeviceChooser


class ReplicaChooser:
    """Slots for the tokens of one rank in one layer; remembers how many it has seen, and the load that it caused.

    Where every expert has one copy there is nothing to choose: slots come from a table. Else ids on a GPU get their
    slots there where the choice can do so for the map (`ReplicaChoice.on_device`), or they are drawn on the host.

    Args:
        choice: Name of a replica choice.
        cluster: Speeds and links of ranks, for choices that look at them; None: all alike.
        world: All ranks, for choices by the counts of a step; None: the rank draws for its own tokens alone.
        any_map: Tables on a GPU have room for every map of as many slots, so that `take_over` can change the map.
    """

    def __init__(
        self,
        layer_map: LayerMap,
        rank: int,
        choice: str = REPLICA_CHOICE,
        *,
        cluster: Cluster | None = None,
        world: Group | None = None,
        any_map: bool = False,
    ) -> None:
        own = layer_map.cluster()
        self._cluster = cluster or own
        shape, wanted = ((one.num_nodes, one.gpus_per_node) for one in (self._cluster, own))
        if shape != wanted:
            raise OptionError(
                f"the cluster has {shape[0]} nodes of {shape[1]} GPUs and the map {wanted[0]} of {wanted[1]}"
            )
        self.choice, self._any_map = choice, any_map
        self._rule = REPLICA_CHOICES.make(choice)
        self._map, self._rank = layer_map, rank
        self._running = RunningLoad.start(self._cluster)
        self._draw = self._rule.drawer(layer_map.tables, rank, self._cluster)
        self._where = self._rule.on_device(layer_map.num_nodes)
        self._on_device: DeviceChooser | None = None
        one_copy = layer_map.num_slots == layer_map.num_experts if any_map else layer_map.tables.one_copy
        only = layer_map.tables.slot_id if one_copy else None
        groups = None if world is None or only is not None else self._rule.step_groups(layer_map.tables)
        self._by_step: StepChooser | None = None
        if world is not None and groups is not None:
            self._by_step = StepChooser(layer_map, groups, self._running, world)
        self._only_E = None if only is None else torch.tensor([*only.tolist(), -1])  # the last one is for id -1

    @property
    def waits_for_host(self) -> bool:
        """True if ids on a GPU have to come to the host."""
        return self._where is None and self._only_E is None

    def take_over(self, before: ReplicaChooser) -> None:
        """Write this map's tables to the memory of those of `before`, where a captured graph reads them. Both were made
        with `any_map`, for as many slots."""
        if self._only_E is not None and before._only_E is not None:
            self._only_E = before._only_E.copy_(self._only_E)
        elif before._on_device is not None:
            self._on_device = before._on_device
            self._on_device.use(self._map)

    def __call__(self, ids_TK: Tensor) -> Tensor:
        """Slot of each assignment, int64 [T, K] on the device of `ids_TK`; -1 where the id is -1."""
        if self._only_E is not None:
            if self._only_E.device != ids_TK.device:
                self._only_E = self._only_E.to(ids_TK.device)
            return self._only_E[ids_TK.long()]
        if self._by_step is not None:
            return self._by_step(ids_TK)
        if ids_TK.is_cuda and self._where is not None:
            if self._on_device is None:
                chooser = attribute(self._where)
                self._on_device = chooser(
                    self._map, self._rank, self._rule, self._cluster, ids_TK.device, any_map=self._any_map
                )
            return self._on_device(ids_TK)
        ids = ids_TK.detach().to("cpu", torch.int64).contiguous().numpy()
        slot_TK = np.empty(ids.shape, dtype=np.int32)
        self._draw(ids, self._running, slot_TK)
        return torch.from_numpy(slot_TK).to(ids_TK.device, torch.int64)
