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
from placement.cost.choices.base import InModel, LayerCost, LayerTokens
from placement.cost.cost_layer import cost_layer
from placement.cost.sets import count_assignments, distinct_sets_with_homes
from placement.cost.traffic import Traffic
from placement.exporters.engine_layers import hidden_HP
from placement.support.parallel import run_tasks


class Meter:
    """What each placement has cost so far.

    num_tokens  tokens so far
    served_L    assignments so far, int64 [L]
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
        self._model, self._homes_are_random = model, homes_are_random
        self._choice = REPLICA_CHOICES.make(replica_choice)
        self.num_tokens = 0
        self.served_L = np.zeros(model.num_layers, dtype=np.int64)
        self._layers = [
            [
                LayerCost.start(row, model.num_experts, one, transport, within)
                for row, within in zip(placement.phy2log_LP, _within_L(placement), strict=True)
            ]
            for placement, one in zip(placements, clusters, strict=True)
        ]
        self.in_order = self._choice.in_order and any(placement.num_redundant for placement in placements)

    @property
    def traffic(self) -> list[list[Traffic]]:
        """Of each placement and layer."""
        return [[layer.traffic for layer in layers] for layers in self._layers]

    @property
    def loads(self) -> list[npt.NDArray[np.float64]]:
        """Of each placement, float64 [L, P], assignments served by each slot."""
        return [np.stack([layer.load_P for layer in layers]) for layers in self._layers]

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
            self.served_L[layer] += count_assignments(tokens.ids_UK)
            merged: LayerTokens | None = None
            for layers in self._layers:
                one = layers[layer]
                if not self._merges(one):
                    cost_layer(tokens, self._choice, one)
                    continue
                merged = self._merged(tokens) if merged is None else merged
                cost_layer(merged, self._choice, one)

        run_tasks(cost_one, range(self._model.num_layers), executor)
        self.num_tokens += len(home_T)

    def _merges(self, one: LayerCost) -> bool:
        """True if equal tokens are found before the layer is costed."""
        if one.tables.one_copy or self.in_order:
            return False
        return not self._choice.is_quick(one, homes_random=self._homes_are_random)

    def _merged(self, tokens: LayerTokens) -> LayerTokens:
        """Equal sets at equal homes cost the same: each once, with its count."""
        sets_UK, home_U, count_U = distinct_sets_with_homes(tokens.ids_UK, tokens.home_U, self._model.num_experts)
        return LayerTokens(sets_UK, count_U, home_U, tokens.homes_random)


def _within_L(placement: Placement) -> list[InModel | None]:
    """Where each layer is in its model; unknown for MTP layers, and where layers differ in slots."""
    model = placement.model
    if (placement.phy2log_LP < 0).any():
        return [None] * model.num_layers
    rows_HP, main = hidden_HP(placement), model.num_main_layers
    return [InModel(rows_HP, row) for row in model.layer_ids[:main]] + [None] * (model.num_layers - main)
