"""`min-nodes-balanced`: as many nodes as `min-nodes`; equal covers and copies are chosen by running load."""

from __future__ import annotations

from functools import partial
from typing import Any

from placement.core.cluster import Cluster
from placement.cost.choices.base import Drawer, LayerCost, LayerTokens
from placement.cost.choices.min_nodes import MinNodes
from placement.cost.draw_slots import draw_balanced
from placement.cost.kernel_balanced import cost_balanced
from placement.cost.lookup_tables import LayerTables


class MinNodesBalanced(MinNodes):
    name = "min-nodes-balanced"
    in_order = True
    without_order = MinNodes.name

    def kernels(self, num_nodes: int) -> tuple[Any, ...]:
        return (cost_balanced,)

    def cost(self, tokens: LayerTokens, layer: LayerCost) -> None:
        cost_balanced(tokens.ids_UK, tokens.home_U, layer.tables, layer.traffic, layer.load_P, layer.running)

    def drawer(self, tables: LayerTables, rank: int, cluster: Cluster) -> Drawer:
        return partial(draw_balanced, rank, tables)

    def on_device(self, num_nodes: int) -> str | None:
        return None
