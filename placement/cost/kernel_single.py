"""What one layer's map sends and serves where every expert has one copy (numba).

See `placement.cost.kernel_replicas`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.cost.lookup_tables import LayerTables
from placement.cost.sets import set_size
from placement.cost.traffic import Traffic
from placement.support.kernel import kernel

_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@kernel
def cost_single(
    ids_TK: npt.NDArray[Any],
    count_T: npt.NDArray[np.int64],
    home_T: npt.NDArray[np.int32],
    tables: LayerTables,
    traffic: Traffic,
    load_P: npt.NDArray[np.float64],
) -> None:
    """Every expert has one copy, so there is nothing to choose: a count."""
    num_experts = tables.host_E.shape[0]
    rank_E = np.empty(num_experts, dtype=np.int32)
    node_E = np.empty(num_experts, dtype=np.int32)
    for e in range(num_experts):
        rank_E[e] = tables.slot_rank[tables.slot_ptr_E[e]]
        node_E[e] = tables.slot_node[tables.slot_ptr_E[e]]
    count_E = np.zeros(num_experts, dtype=np.int64)
    # one row a home, and a last one for tokens whose home is unknown
    node_HN = np.zeros((tables.num_nodes + 1, tables.num_nodes), dtype=np.int64)
    rank_HG = np.zeros((tables.num_nodes + 1, tables.num_ranks), dtype=np.int64)
    assignment_HG = np.zeros((tables.num_nodes + 1, tables.num_ranks), dtype=np.int64)
    seen_G = np.full(tables.num_ranks, -1, dtype=np.int64)
    for t in range(ids_TK.shape[0]):
        row, times = home_T[t], count_T[t]
        if row < 0:
            row = tables.num_nodes
        mask = _ZERO
        for k in range(set_size(ids_TK[t])):
            e = ids_TK[t, k]
            count_E[e] += times
            rank, bit = rank_E[e], _ONE << np.uint64(node_E[e])
            assignment_HG[row, rank] += times
            if seen_G[rank] != t:
                seen_G[rank] = t
                rank_HG[row, rank] += times
            if mask & bit == _ZERO:
                mask |= bit
                node_HN[row, node_E[e]] += times
    for h in range(tables.num_nodes):
        for n in range(tables.num_nodes):
            traffic.node_HN[h, n] += node_HN[h, n] + node_HN[tables.num_nodes, n] / tables.num_nodes
        for g in range(tables.num_ranks):
            traffic.rank_HG[h, g] += rank_HG[h, g] + rank_HG[tables.num_nodes, g] / tables.num_nodes
            traffic.assignment_HG[h, g] += assignment_HG[h, g] + assignment_HG[tables.num_nodes, g] / tables.num_nodes
    for e in range(num_experts):
        load_P[tables.slot_id[tables.slot_ptr_E[e]]] += count_E[e]
