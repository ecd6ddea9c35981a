"""Choices in which the rank that a token is on says by which chance each copy of an expert serves: a table by ranks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.choices.base import Drawer, Floats, HomeCoster, InModel, LayerCost, LayerTokens
from placement.cost.kernel_homes import cost_of_chances
from placement.cost.kernel_ranks import cost_by_rank, draw_by_rank
from placement.cost.lookup_tables import LayerTables
from placement.cost.step_groups import StepGroups

Ints = npt.NDArray[np.int64]


class ByRank(ABC):
    """A subclass gives its `name`, `chances` and `chance_GC`.

    Where a token's rank is not known, each rank of its home has an equal share. Engines go by their own numbers
    of ranks, so tables are made of those (`engine_rank_G`).
    """

    name: str
    chances: int | None
    in_order: bool = False
    without_order: str | None = None

    @abstractmethod
    def chance_GC(self, tables: LayerTables, cluster: Cluster, within: InModel | None = None) -> Floats:
        """The chance that copy c (of `tables`) serves its expert for tokens of rank g, float64 [G, C].

        Args:
            within: Where the layer is in its model, if known: for rules that go on from layer to layer.
        """

    def kernels(self, num_nodes: int) -> tuple[Any, ...]:
        return (cost_by_rank,)

    def is_quick(self, layer: LayerCost, *, homes_random: bool) -> bool:
        return False

    def cost(self, tokens: LayerTokens, layer: LayerCost) -> None:
        chance_GC = self.chance_GC(layer.tables, layer.cluster, layer.within)
        cost_by_rank(tokens.ids_UK, tokens.count_U, tokens.home_U, chance_GC, layer.tables, layer.traffic, layer.load_P)

    def drawer(self, tables: LayerTables, rank: int, cluster: Cluster) -> Drawer:
        return partial(draw_by_rank, rank, self.chance_GC(tables, cluster)[rank], tables)

    def on_device(self, num_nodes: int) -> str | None:
        return None

    def step_groups(self, tables: LayerTables) -> StepGroups | None:
        return None

    def home_coster(self, tables: LayerTables, cluster: Cluster, fare_HN: Floats, distinct: bool) -> HomeCoster:
        chance_GC = self.chance_GC(tables, cluster)
        chance_EGN = np.zeros((len(tables.host_E), cluster.num_ranks, cluster.num_nodes))
        np.add.at(chance_EGN.transpose(0, 2, 1), (expert_of_C(tables), tables.slot_node), chance_GC.T)
        return partial(cost_of_chances, tables.host_E, chance_EGN, fare_HN, distinct)


def expert_of_C(tables: LayerTables) -> Ints:
    """Expert of each copy, int64 [C]."""
    return np.repeat(np.arange(len(tables.host_E)), np.diff(tables.slot_ptr_E))


def listed_C(tables: LayerTables, cluster: Cluster) -> Ints:
    """The copies, by expert, as an engine lists them: by its own numbers of slots, int64 [C]."""
    return np.lexsort((cluster.engine_rank_G()[tables.slot_rank], expert_of_C(tables)))
