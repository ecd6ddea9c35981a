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
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.choices.base import LayerTokens
from placement.cost.cost_layer import cost_layer
from placement.cost.kernel_balanced import RunningLoad
from placement.cost.lookup_tables import LayerTables, layer_tables
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
        self._model, self._clusters, self._homes_are_random = model, clusters, homes_are_random
        self._choice = REPLICA_CHOICES.make(replica_choice)
        layers = range(model.num_layers)
        self.num_tokens = 0
        self.traffic = [[Traffic.start(one.num_nodes, one.num_ranks) for _ in layers] for one in placements]
        self.loads = [np.zeros((model.num_layers, placement.num_slots)) for placement in placements]
        self._tables = [[_tables(placement, layer) for layer in layers] for placement in placements]
        self._running = [[RunningLoad.start(one) for _ in layers] for one in clusters]
        self._links_alike = [links_alike(one, transport) for one in clusters]
        self._chosen = any(placement.num_redundant for placement in placements)
        self.in_order = self._choice.in_order and self._chosen

    def add(
        self,
        home_T: npt.NDArray[np.int32],
        ids_of_layer: Callable[[int], npt.NDArray[Any]],
        executor: Executor | None,
    ) -> None:
        """Tokens with these homes (-1: the mean over all nodes); `ids_of_layer` gives their experts in a layer."""
        once_T = np.ones(len(home_T), dtype=np.int64)

        def cost_one(layer: int) -> None:
            tokens = LayerTokens(ids_of_layer(layer), once_T, home_T, self._homes_are_random)
            sets = self._merged(tokens) if self._chosen and not self.in_order else tokens
            for m, cluster in enumerate(self._clusters):
                tables = self._tables[m][layer]
                cost_layer(
                    tokens if tables.one_copy else sets,
                    tables,
                    self._choice,
                    cluster,
                    self._running[m][layer],
                    self.traffic[m][layer],
                    self.loads[m][layer],
                    links_alike=self._links_alike[m],
                )

        run_tasks(cost_one, range(self._model.num_layers), executor)
        self.num_tokens += len(home_T)

    def _merged(self, tokens: LayerTokens) -> LayerTokens:
        """Equal sets at equal homes cost the same: each once, with its count."""
        sets_UK, home_U, count_U = distinct_sets_with_homes(tokens.ids_UK, tokens.home_U, self._model.num_experts)
        return LayerTokens(sets_UK, count_U, home_U, tokens.homes_random)


def _tables(placement: Placement, layer: int) -> LayerTables:
    return layer_tables(
        placement.phy2log_LP[layer],
        num_experts=placement.model.num_experts,
        num_nodes=placement.num_nodes,
        gpus_per_node=placement.gpus_per_node,
    )
