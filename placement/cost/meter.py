"""What maps cost on tokens that come piece by piece: exact sends and loads, layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.core.placement import Placement
from placement.cost.balanced import RunningLoad, cost_balanced
from placement.cost.kernel_replicas import cost_replicated
from placement.cost.kernel_single import cost_single
from placement.cost.lookup_tables import LayerTables, layer_tables
from placement.cost.min_nodes import cost_min_nodes
from placement.cost.replica_choice import MIN_NODES, MIN_NODES_BALANCED, replica_choice_code
from placement.cost.sets import distinct_sets_with_homes
from placement.cost.traffic import Traffic
from placement.cost.transport import links_alike
from placement.support.parallel import run_tasks


class Meter:
    """What each placement has cost so far.

    num_tokens  tokens so far
    traffic     of each placement and layer
    loads       of each placement, float64 [L, P], assignments served by each slot
    in_order    True if the order of the tokens matters
    """

    def __init__(
        self,
        model: Model,
        placements: Sequence[Placement],
        clusters: Sequence[Cluster],
        replica_choice: str,
        transport: str,
        *,
        homes_are_random: bool,
    ) -> None:
        self._model = model
        self._code = replica_choice_code(replica_choice)
        layers = range(model.num_layers)
        self.num_tokens = 0
        self.traffic = [[Traffic.start(one.num_nodes, one.num_ranks) for _ in layers] for one in placements]
        self.loads = [np.zeros((model.num_layers, placement.num_slots)) for placement in placements]
        self._singles = [placement.num_redundant == 0 for placement in placements]
        self._tables = [[_tables(placement, layer) for layer in layers] for placement in placements]
        self._running = [
            [RunningLoad.start(placement.num_ranks, one.speed_G()) for _ in layers]
            for placement, one in zip(placements, clusters, strict=True)
        ]
        self._without_ends = [
            homes_are_random and self._code == MIN_NODES and links_alike(one, transport) for one in clusters
        ]
        self.in_order = self._code == MIN_NODES_BALANCED and not all(self._singles)

    def add(
        self,
        home_T: npt.NDArray[np.int32],
        ids_of_layer: Callable[[int], npt.NDArray[Any]],
        executor: Executor | None,
    ) -> None:
        """Tokens with these homes (-1: the mean over all nodes); `ids_of_layer` gives their experts in a layer."""
        once_T = np.ones(len(home_T), dtype=np.int64)
        merge = not (self.in_order or all(self._singles))

        def cost_one(layer: int) -> None:
            ids_TK = ids_of_layer(layer)
            sets = distinct_sets_with_homes(ids_TK, home_T, self._model.num_experts) if merge else None
            for m, single in enumerate(self._singles):
                out = (self._tables[m][layer], self.traffic[m][layer], self.loads[m][layer])
                if single:
                    cost_single(ids_TK, once_T, home_T, *out)
                elif sets is None:
                    cost_balanced(ids_TK, home_T, *out, self._running[m][layer])
                else:
                    sets_UK, home_U, count_U = sets
                    if self._without_ends[m]:
                        cost_min_nodes(sets_UK, count_U, *out)
                    else:
                        cost_replicated(sets_UK, count_U, home_U, self._code, *out)

        run_tasks(cost_one, range(self._model.num_layers), executor)
        self.num_tokens += len(home_T)


def _tables(placement: Placement, layer: int) -> LayerTables:
    return layer_tables(
        placement.phy2log_LP[layer],
        num_experts=placement.model.num_experts,
        num_nodes=placement.num_nodes,
        gpus_per_node=placement.gpus_per_node,
    )
