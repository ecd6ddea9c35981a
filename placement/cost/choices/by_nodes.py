"""Choices that say which nodes may serve an expert for a home, and leave the rest to chance.

Such a choice is a table. The kernels that take the mean, draw slots, run on a device and weigh homes read the table.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.choices.base import Drawer, Floats, HomeCoster, LayerCost, LayerTokens
from placement.cost.draw_slots import draw_slots
from placement.cost.kernel_chances import HOME_FIRST
from placement.cost.kernel_homes import cost_of_chances
from placement.cost.kernel_replicas import Allowed, cost_replicated
from placement.cost.lookup_tables import LayerTables
from placement.cost.step_groups import StepGroups

Masks = npt.NDArray[np.uint64]


class ByNodes(ABC):
    """Any slot on the allowed nodes serves, with equal chance; with `by_cover` a smallest cover allows nodes further.

    A subclass gives its `name` and `nodes_EH`, and `chances` as a search should take it. Where slots of an expert
    are on one rank, the rank's chance is that of them all; but with `by_cover`, and with `home_first` at home, copies
    on different ranks are alike.
    """

    name: str
    home_first: bool = True
    by_cover: bool = False
    chances: int | None = HOME_FIRST
    in_order: bool = False
    without_order: str | None = None

    @abstractmethod
    def nodes_EH(self, host_E: Masks, cluster: Cluster) -> Masks:
        """Nodes whose copies may serve expert e for home h, uint64 [E, N + 1]; the last column is of most homes.

        Args:
            host_E: uint64 [E], the nodes that host each expert.
        """

    def apart_E(self, host_E: Masks, nodes_EH: Masks) -> Masks:
        """The homes for which an expert's copy is chosen in another way than the last column says, uint64 [E]."""
        differs_EH = nodes_EH[:, :-1] != nodes_EH[:, -1:]
        bit_H = np.uint64(1) << np.arange(differs_EH.shape[1], dtype=np.uint64)
        return np.asarray((differs_EH * bit_H).sum(axis=1, dtype=np.uint64))

    def kernels(self, num_nodes: int) -> tuple[Any, ...]:
        return (cost_replicated,)

    def is_quick(self, layer: LayerCost, *, homes_random: bool) -> bool:
        return False

    def cost(self, tokens: LayerTokens, layer: LayerCost) -> None:
        host_E = layer.tables.host_E
        nodes_EH = self.nodes_EH(host_E, layer.cluster)
        apart_E, several_E = self.apart_E(host_E, nodes_EH), layer.tables.most_times_E() > 1
        by_slot = bool(several_E.any()) and not self.by_cover
        if by_slot and self.home_first:  # at home the slots of a rank are one copy, elsewhere as many as they are
            apart_E = apart_E | np.where(several_E, host_E, np.uint64(0))
        allow = Allowed(self.by_cover, by_slot, self.home_first, nodes_EH)
        cost_replicated(
            tokens.ids_UK, tokens.count_U, tokens.home_U, allow, apart_E, layer.tables, layer.traffic, layer.load_P
        )

    def drawer(self, tables: LayerTables, rank: int, cluster: Cluster) -> Drawer:
        nodes_E = np.ascontiguousarray(self.nodes_EH(tables.host_E, cluster)[:, rank // cluster.gpus_per_node])
        return partial(draw_slots, rank, self.by_cover, self.home_first, nodes_E, tables)

    def on_device(self, num_nodes: int) -> str | None:
        return "placement.runtime.choice_on_device:DeviceChooser"

    def step_groups(self, tables: LayerTables) -> StepGroups | None:
        return None

    def home_coster(self, tables: LayerTables, cluster: Cluster, fare_HN: Floats, distinct: bool) -> HomeCoster:
        chance_EHN = _chances(tables, self.nodes_EH(tables.host_E, cluster))
        return partial(cost_of_chances, tables.host_E, chance_EHN, fare_HN, distinct)


def home_first_EH(host_E: Masks, num_nodes: int) -> Masks:
    """The home alone where it hosts the expert, else every node that does, uint64 [E, N + 1]."""
    bit_H = np.append(np.uint64(1) << np.arange(num_nodes, dtype=np.uint64), np.uint64(0))
    return np.where(host_E[:, None] & bit_H != 0, bit_H, host_E[:, None])


def _chances(tables: LayerTables, nodes_EH: Masks) -> Floats:
    """The chance that node n serves expert e for home h, [E, H, N]: any slot on the allowed nodes."""
    copies_EN = np.zeros((len(tables.host_E), tables.num_nodes))
    expert_C = np.repeat(np.arange(len(copies_EN)), np.diff(tables.slot_ptr_E))
    np.add.at(copies_EN, (expert_C, tables.slot_node), tables.slot_times)
    allowed_EHN = nodes_EH[:, :-1, None] >> np.arange(tables.num_nodes, dtype=np.uint64) & np.uint64(1)
    chance_EHN = copies_EN[:, None] * allowed_EHN
    return np.asarray(chance_EHN / chance_EHN.sum(axis=2, keepdims=True))
