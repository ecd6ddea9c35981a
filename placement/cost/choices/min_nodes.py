"""`min-nodes`: the home node first, then the fewest further nodes that cover the token's set (our runtime).

All smallest covers weigh the same, and so do the chosen nodes that host an expert, and its copies on a node.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from placement.core.cluster import Cluster
from placement.cost.choices.base import Floats, HomeCoster, LayerCost, LayerTokens
from placement.cost.choices.by_nodes import ByNodes, Masks, home_first_EH
from placement.cost.covers import EXACT_NODES
from placement.cost.kernel_homes import cost_of_covers
from placement.cost.kernel_min_nodes import cost_min_nodes
from placement.cost.lookup_tables import LayerTables


class MinNodes(ByNodes):
    name = "min-nodes"
    by_cover = True
    by_chance = False
    kernels: tuple[Any, ...] = (cost_min_nodes,)

    def nodes_EH(self, host_E: Masks, cluster: Cluster) -> Masks:
        return home_first_EH(host_E, cluster.num_nodes)

    def apart_E(self, host_E: Masks, nodes_EH: Masks) -> Masks:
        return host_E  # a home that hosts an expert has other covers, even where no other node hosts that expert

    def cost(self, tokens: LayerTokens, layer: LayerCost) -> None:
        if layer.links_alike and tokens.homes_random:
            cost_min_nodes(tokens.ids_UK, tokens.count_U, layer.tables, layer.traffic, layer.load_P)
        else:
            super().cost(tokens, layer)

    def on_device(self, num_nodes: int) -> str | None:
        return super().on_device(num_nodes) if num_nodes <= EXACT_NODES else None

    def home_coster(self, tables: LayerTables, cluster: Cluster, fare_HN: Floats, distinct: bool) -> HomeCoster:
        return partial(cost_of_covers, tables.host_E, fare_HN, distinct)
