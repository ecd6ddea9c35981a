"""`vllm-hash`: one hash of a token's row picks the replicas of all its experts, so their choices go together.

vLLM 0.33.0, `vllm/model_executor/layers/fused_moe/router/base_router.py`: replicas are listed by slot, so the order of
slots decides which copies of different experts serve the same tokens. Where an expert fills several slots of a rank,
each of them is listed.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import Any

import numpy as np

from placement.core.cluster import Cluster
from placement.cost.choices.base import Drawer, Floats, HomeCoster, LayerCost, LayerTokens
from placement.cost.choices.by_rank import listed_C
from placement.cost.kernel_chances import BY_HASH
from placement.cost.kernel_row_hash import (
    MOST_RESIDUES,
    Listed,
    cost_by_row_hash,
    draw_by_row_hash,
    homes_by_row_hash,
)
from placement.cost.lookup_tables import LayerTables
from placement.cost.step_groups import StepGroups

_log = logging.getLogger(__name__)


class VllmHash:
    name = "vllm-hash"
    in_order = False
    without_order: str | None = None
    chances: int | None = BY_HASH

    def kernels(self, num_nodes: int) -> tuple[Any, ...]:
        return (cost_by_row_hash,)

    def is_quick(self, layer: LayerCost, *, homes_random: bool) -> bool:
        return False

    def cost(self, tokens: LayerTokens, layer: LayerCost) -> None:
        listed = _listed(layer.tables, layer.cluster)
        sampled = cost_by_row_hash(
            tokens.ids_UK, tokens.count_U, tokens.home_U, listed, layer.tables, layer.traffic, layer.load_P
        )
        if sampled:
            _log.warning(
                "%d tokens have experts whose numbers of replicas have a common multiple above %d: what they cost is "
                "the mean over the first %d rows of a batch, not over all rows",
                sampled,
                MOST_RESIDUES,
                MOST_RESIDUES,
            )

    def drawer(self, tables: LayerTables, rank: int, cluster: Cluster) -> Drawer:
        return partial(draw_by_row_hash, _listed(tables, cluster), tables)

    def on_device(self, num_nodes: int) -> str | None:
        return None

    def step_groups(self, tables: LayerTables) -> StepGroups | None:
        return None

    def home_coster(self, tables: LayerTables, cluster: Cluster, fare_HN: Floats, distinct: bool) -> HomeCoster:
        return partial(homes_by_row_hash, _listed(tables, cluster), tables, fare_HN, distinct)


def _listed(tables: LayerTables, cluster: Cluster) -> Listed:
    listed = listed_C(tables, cluster)
    slots_E = np.add.reduceat(tables.slot_times, tables.slot_ptr_E[:-1])
    return Listed(
        np.concatenate([[0], np.cumsum(slots_E)]).astype(np.int64), np.repeat(listed, tables.slot_times[listed])
    )
