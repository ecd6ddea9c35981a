"""`sglang-dynamic`: the nearest copy of an expert, else a random one for every assignment.

SGLang 0.5.23 with an all-to-all backend: `srt/eplb/expert_location.py:_find_nearest_expert` takes the copy on the same
GPU, else the first slot of the same node where some of the copies, not all, are on that node; among the other copies
`srt/eplb/expert_location_dispatch.py` draws with equal chance. Without such a backend nothing is sent from rank to
rank, and copies are taken in turn: the load is that of `uniform`.
"""

from __future__ import annotations

import numpy as np

from placement.core.cluster import Cluster
from placement.cost.choices.base import Floats, InModel
from placement.cost.choices.by_rank import ByRank, expert_of_C
from placement.cost.kernel_chances import NEAREST
from placement.cost.lookup_tables import LayerTables


class SGLangDynamic(ByRank):
    name = "sglang-dynamic"
    chances = NEAREST

    def chance_GC(self, tables: LayerTables, cluster: Cluster, within: InModel | None = None) -> Floats:
        nearest_GC, fair_GE = nearest(tables, cluster)
        expert_C = expert_of_C(tables)
        slots_E = np.add.reduceat(tables.slot_times, tables.slot_ptr_E[:-1])
        even_C = tables.slot_times / slots_E[expert_C]
        return np.where(fair_GE[:, expert_C], even_C, nearest_GC)


def nearest(tables: LayerTables, cluster: Cluster) -> tuple[Floats, np.ndarray[tuple[int, int], np.dtype[np.bool_]]]:
    """(1.0 where copy c is the nearest of its expert for rank g, float64 [G, C]; True where none is, bool [G, E]).

    SGLang takes `gpus_per_node` consecutive ranks, as it numbers them, for a node.
    """
    engine_G, starts, expert_C = cluster.engine_rank_G(), tables.slot_ptr_E[:-1], expert_of_C(tables)
    rank_C = engine_G[tables.slot_rank]
    own_GC = rank_C == engine_G[:, None]
    near_GC = rank_C // cluster.gpus_per_node == engine_G[:, None] // cluster.gpus_per_node
    first_GE = np.minimum.reduceat(np.where(near_GC, rank_C, cluster.num_ranks), starts, axis=1)
    near_GE = np.add.reduceat(near_GC * tables.slot_times, starts, axis=1)
    slots_E = np.add.reduceat(tables.slot_times, starts)
    has_own_GE = np.add.reduceat(own_GC, starts, axis=1, dtype=np.int64) > 0
    narrows_GE = (near_GE > 0) & (near_GE < slots_E)
    first_GC = near_GC & (rank_C == first_GE[:, expert_C])
    nearest_GC = np.where(has_own_GE[:, expert_C], own_GC, first_GC & narrows_GE[:, expert_C])
    nearest_GC |= (slots_E == 1)[expert_C]
    return nearest_GC.astype(np.float64), ~has_own_GE & ~narrows_GE & (slots_E > 1)
