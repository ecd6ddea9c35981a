"""`min-nodes-balanced`: as many nodes as `min-nodes`; equal covers and copies are chosen by running load."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.choices.base import Drawer, Floats, LayerTokens
from placement.cost.choices.min_nodes import MinNodes
from placement.cost.draw_slots import draw_balanced
from placement.cost.kernel_balanced import RunningLoad, cost_balanced
from placement.cost.lookup_tables import LayerTables
from placement.cost.traffic import Traffic


class MinNodesBalanced(MinNodes):
    name = "min-nodes-balanced"
    in_order = True
    without_order = MinNodes.name
    kernels = (cost_balanced,)

    def cost(
        self,
        tokens: LayerTokens,
        tables: LayerTables,
        cluster: Cluster,
        running: RunningLoad,
        traffic: Traffic,
        load_P: Floats,
        *,
        links_alike: bool,
    ) -> None:
        cost_balanced(tokens.ids_UK, tokens.home_U, tables, traffic, load_P, running)

    def drawer(self, tables: LayerTables, rank: int, cluster: Cluster) -> Drawer:
        def draw(ids_TK: npt.NDArray[Any], running: RunningLoad, slot_TK: npt.NDArray[np.int32]) -> None:
            draw_balanced(ids_TK, rank, tables, running, slot_TK)

        return draw

    def on_device(self, num_nodes: int) -> str | None:
        return None
