"""`uniform`: any copy with equal chance, wherever it is (vLLM's hash of the token row)."""

from __future__ import annotations

import numpy as np

from placement.core.cluster import Cluster
from placement.cost.choices.by_nodes import ByNodes, Masks


class Uniform(ByNodes):
    name = "uniform"
    home_first = False

    def nodes_EH(self, host_E: Masks, cluster: Cluster) -> Masks:
        return np.repeat(host_E[:, None], cluster.num_nodes + 1, axis=1)
