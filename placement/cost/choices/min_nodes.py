"""`min-nodes`: the home node first, then the fewest further nodes that cover the token's set (our runtime).

All smallest covers weigh the same, and so do the chosen nodes that host an expert, and its copies on a node.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from placement.core.cluster import Cluster
from placement.cost.choices.base import Floats, HomeCoster, LayerCost, LayerTokens
from placement.cost.choices.by_nodes import ByNodes, Masks, home_first_EH
from placement.cost.covers import EXACT_NODES
from placement.cost.kernel_families import cost_families
from placement.cost.kernel_homes import cost_of_covers
from placement.cost.kernel_min_nodes import cost_min_nodes
from placement.cost.lookup_tables import LayerTables
from placement.cost.node_families import MOST_NODES, choices_of, families_of


class MinNodes(ByNodes):
    name = "min-nodes"
    by_cover = True
    chances = None

    def nodes_EH(self, host_E: Masks, cluster: Cluster) -> Masks:
        return home_first_EH(host_E, cluster.num_nodes)

    def apart_E(self, host_E: Masks, nodes_EH: Masks) -> Masks:
        return host_E  # a home that hosts an expert has other covers, even where no other node hosts that expert

    def kernels(self, num_nodes: int) -> tuple[Any, ...]:
        return (cost_families if num_nodes <= MOST_NODES else cost_min_nodes,)

    def is_quick(self, layer: LayerCost, *, homes_random: bool) -> bool:
        return layer.links_alike and homes_random and layer.cluster.num_nodes <= MOST_NODES

    def cost(self, tokens: LayerTokens, layer: LayerCost) -> None:
        if self.is_quick(layer, homes_random=tokens.homes_random):
            nodes = layer.cluster.num_nodes
            tables = (layer.tables, families_of(nodes, random_homes=True), choices_of(nodes))
            ids_UK = tokens.ids_UK.astype(np.int32, copy=False)  # so that the kernel is compiled for one type
            cost_families(ids_UK, tokens.count_U, *tables, layer.traffic, layer.load_P)
        elif layer.links_alike and tokens.homes_random:
            cost_min_nodes(tokens.ids_UK, tokens.count_U, layer.tables, layer.traffic, layer.load_P)
        else:
            super().cost(tokens, layer)

    def on_device(self, num_nodes: int) -> str | None:
        return super().on_device(num_nodes) if num_nodes <= EXACT_NODES else None

    def home_coster(self, tables: LayerTables, cluster: Cluster, fare_HN: Floats, distinct: bool) -> HomeCoster:
        return partial(cost_of_covers, tables.host_E, fare_HN, distinct)
