"""`local-first`: a copy on the home node if there is one, else any copy with equal chance."""

from __future__ import annotations

from placement.core.cluster import Cluster
from placement.cost.choices.by_nodes import ByNodes, Masks, home_first_EH


class LocalFirst(ByNodes):
    name = "local-first"

    def nodes_EH(self, host_E: Masks, cluster: Cluster) -> Masks:
        return home_first_EH(host_E, cluster.num_nodes)
