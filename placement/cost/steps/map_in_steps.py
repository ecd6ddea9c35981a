"""One map in the steps of a replay: which slot serves every assignment, and what each step costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.choices.base import Drawer, ReplicaChoice
from placement.cost.kernel_balanced import RunningLoad
from placement.cost.lookup_tables import LayerTables, layer_tables
from placement.cost.steps.figures import StepFigures, StepsSoFar, columns_of
from placement.cost.steps.kernel_split import split_steps
from placement.cost.steps.kernel_steps import COLUMNS, cost_steps, first_rows
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
        self._layers = [_Layer(row, placement.model.num_experts, cluster, choice) for row in placement.phy2log_LP]
        self._so_far = [StepsSoFar() for _ in self.sizes]

    def layer(
        self, layer: int, ids_TK: npt.NDArray[Any], home_T: npt.NDArray[np.int32], rows_G: Sequence[npt.NDArray[Any]]
    ) -> list[Floats]:
        """Figures of the full steps of one layer and times as `columns_of` gives them, for each size.

        home_T  home node of each token
        rows_G  the tokens at home on each rank, in order
        """
        unit_TK, rank_X = self._layers[layer].served(ids_TK, rows_G)
        first_B = first_rows(len(home_T), self._step_tokens_B)
        figure_SC = np.empty((first_B[-1], COLUMNS))
        cost_steps(
            unit_TK,
            rank_X // np.int32(self._shared),
            home_T,
            self._step_tokens_B,
            first_B,
            self._carrier.copies,
            self._carrier.everywhere,
            self._fare_HX,
            self._slowness_G,
            figure_SC,
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


class _Layer:
    """The slots of one layer; remembers what each rank's replica choice does."""

    def __init__(self, phy2log_P: npt.NDArray[np.integer], num_experts: int, cluster: Cluster, choice: ReplicaChoice):
        self._tables: LayerTables = layer_tables(phy2log_P, num_experts, cluster)
        self._drawers: list[tuple[Drawer, RunningLoad]] = []
        if self._tables.one_copy:
            self._rank_X = self._tables.slot_rank
        else:
            self._rank_X = cluster.rank_of_slot_P().astype(np.int32)
            self._drawers = [
                (choice.drawer(self._tables, rank, cluster), RunningLoad.start(cluster))
                for rank in range(cluster.num_ranks)
            ]

    def served(
        self, ids_TK: npt.NDArray[Any], rows_G: Sequence[npt.NDArray[Any]]
    ) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """(who serves each assignment, [T, K], and the rank of each of these): experts, or slots that are drawn."""
        if self._tables.one_copy:
            return ids_TK.astype(np.int32, copy=False), self._rank_X  # so that the kernel is compiled for one type
        slot_TK = np.empty(ids_TK.shape, dtype=np.int32)
        for (draw, running), rows_R in zip(self._drawers, rows_G, strict=True):
            slot_RK = np.empty((len(rows_R), ids_TK.shape[1]), dtype=np.int32)
            draw(ids_TK[rows_R].astype(np.int64), running, slot_RK)
            slot_TK[rows_R] = slot_RK
        return slot_TK, self._rank_X

    def best_split(
        self,
        ids_TK: npt.NDArray[Any],
        shared: int,
        slowness_G: Floats,
        step_tokens_B: npt.NDArray[np.int64],
        first_B: npt.NDArray[np.int64],
    ) -> Floats | None:
        """The busiest rank of the full steps if load were split over copies as well as can be; None without copies.

        shared: Ranks that are taken for one.
        """
        tables = self._tables
        if tables.one_copy:
            return None
        expert_C = np.repeat(np.arange(len(tables.host_E)), np.diff(tables.slot_ptr_E))
        held_C2 = np.unique(np.stack([expert_C, tables.slot_rank // shared], axis=1), axis=0)
        rank_ptr_E = np.searchsorted(held_C2[:, 0], np.arange(len(tables.host_E) + 1))
        busiest_S = np.empty(first_B[-1])
        ids_TK = ids_TK.astype(np.int32, copy=False)
        rank_C = np.ascontiguousarray(held_C2[:, 1])
        split_steps(ids_TK, rank_ptr_E, rank_C, 1.0 / slowness_G, step_tokens_B, first_B, busiest_S)
        return busiest_S
