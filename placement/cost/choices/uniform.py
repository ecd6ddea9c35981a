"""`uniform`: any copy with equal chance, wherever it is (TensorRT-LLM, LMDeploy, Omni-Infer)."""

from __future__ import annotations

import numpy as np

from placement.core.cluster import Cluster
from placement.cost.choices.by_nodes import ByNodes, Masks
from placement.cost.kernel_chances import ANY


class Uniform(ByNodes):
    name = "uniform"
    home_first = False
    chances = ANY

    def nodes_EH(self, host_E: Masks, cluster: Cluster) -> Masks:
        return np.repeat(host_E[:, None], cluster.num_nodes + 1, axis=1)
