"""`ascend-rank`: of an expert's `n` replicas, by rising rank, number `ep_rank % n`, for all tokens of a rank.

vllm-ascend 0.23.0, `vllm_ascend/eplb/core/eplb_utils.py:generate_log2phy_map` without tensor parallelism: which replica
is listed first decides who uses it. Slots of an expert on one rank are one replica.
"""

from __future__ import annotations

import numpy as np

from placement.core.cluster import Cluster
from placement.cost.choices.base import Floats, InModel
from placement.cost.choices.by_rank import ByRank, expert_of_C, listed_C
from placement.cost.kernel_chances import BY_RANK
from placement.cost.lookup_tables import LayerTables


class AscendRank(ByRank):
    name = "ascend-rank"
    chances = BY_RANK

    def chance_GC(self, tables: LayerTables, cluster: Cluster, within: InModel | None = None) -> Floats:
        expert_C, listed = expert_of_C(tables), listed_C(tables, cluster)
        place_C = np.empty(len(listed), dtype=np.int64)
        place_C[listed] = np.arange(len(listed)) - tables.slot_ptr_E[expert_C]
        wanted_GC = cluster.engine_rank_G()[:, None] % np.diff(tables.slot_ptr_E)[expert_C]
        return np.asarray(wanted_GC == place_C, dtype=np.float64)
