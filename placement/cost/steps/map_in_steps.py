"""One map in the steps of a replay: which slot serves every assignment, and what each step costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.choices.base import ReplicaChoice
from placement.cost.steps.figures import StepFigures, StepsSoFar, columns_of
from placement.cost.steps.kernel_steps import COLUMNS, cost_steps, first_rows
from placement.cost.steps.layer_in_steps import LayerInSteps
from placement.cost.transport import fare_HX
from placement.cost.transports import TRANSPORTS

Floats = npt.NDArray[np.float64]


class MapInSteps:
    """What a map has cost in the steps so far, for each size of steps.

    sizes  tokens of each GPU in a step
    """

    def __init__(
        self, placement: Placement, cluster: Cluster, choice: ReplicaChoice, transport: str, sizes: Sequence[int]
    ) -> None:
        self.cluster, self.sizes = cluster, tuple(sizes)
        self._step_tokens_B = np.array(sizes, dtype=np.int64) * cluster.num_ranks
        self._carrier = TRANSPORTS.make(transport)
        balanced = cluster.balanced()
        self._fare_HX = fare_HX(balanced, transport)
        self._slowness_G, self._shared = 1.0 / balanced.speed_G(), cluster.num_ranks // balanced.num_ranks
        self._layers = [
            LayerInSteps(row, placement.model.num_experts, cluster, choice, len(self.sizes))
            for row in placement.phy2log_LP
        ]
        self._so_far = [StepsSoFar() for _ in self.sizes]

    def layer(
        self, layer: int, ids_TK: npt.NDArray[Any], home_T: npt.NDArray[np.int32], rows_G: Sequence[npt.NDArray[Any]]
    ) -> list[Floats]:
        """Figures of the full steps of one layer and times as `columns_of` gives them, for each size.

        home_T  home node of each token
        rows_G  the tokens at home on each rank, in order
        """
        first_B = first_rows(len(home_T), self._step_tokens_B)
        figure_SC = np.empty((first_B[-1], COLUMNS))
        for sizes, unit_TK, rank_X in self._layers[layer].served(ids_TK, rows_G, self._step_tokens_B):
            first, last = first_B[sizes.start], first_B[sizes.stop]
            cost_steps(
                unit_TK,
                rank_X // np.int32(self._shared),
                home_T,
                self._step_tokens_B[sizes],
                first_B[sizes.start : sizes.stop + 1] - first,
                self._carrier.copies,
                self._carrier.everywhere,
                self._fare_HX,
                self._slowness_G,
                figure_SC[first:last],
            )
        split_S = self._layers[layer].best_split(ids_TK, self._shared, self._slowness_G, self._step_tokens_B, first_B)
        parts = np.split(figure_SC, first_B[1:-1])
        splits = [None] * len(parts) if split_S is None else np.split(split_S, first_B[1:-1])
        return [
            columns_of(part_SC, self.cluster, size, best_S)
            for size, part_SC, best_S in zip(self.sizes, parts, splits, strict=True)
        ]

    def add(self, whole: Sequence[Floats], num_layers: int) -> None:
        """Steps, of whose layers these are the sums, for each size."""
        for sum_SC, so_far in zip(whole, self._so_far, strict=True):
            so_far.add(sum_SC, num_layers)

    def steps(self, number: int) -> int:
        """Full steps of the size with this number."""
        return self._so_far[number].steps

    def figures(self, number: int) -> StepFigures | None:
        """Of those; None where none is full."""
        return self._so_far[number].figures() if self.steps(number) else None
