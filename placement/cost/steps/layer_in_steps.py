"""The slots of one layer of a map in steps: who serves every assignment, and what the best split would be."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.choices.base import Drawer, ReplicaChoice
from placement.cost.kernel_balanced import RunningLoad
from placement.cost.lookup_tables import LayerTables, layer_tables
from placement.cost.step_groups import ask_step, shares_of_step, take_slots
from placement.cost.steps.kernel_split import split_steps

Floats = npt.NDArray[np.float64]
Slots = npt.NDArray[np.int32]
Served = tuple[slice, Slots, Slots]


class LayerInSteps:
    """Remembers what each rank's replica choice does, for each of `sizes` sizes of steps where it looks at steps."""

    def __init__(
        self, phy2log_P: npt.NDArray[np.integer], num_experts: int, cluster: Cluster, choice: ReplicaChoice, sizes: int
    ) -> None:
        self._tables: LayerTables = layer_tables(phy2log_P, num_experts, cluster)
        self._groups = None if self._tables.one_copy else choice.step_groups(self._tables)
        self._cluster, ranks = cluster, range(cluster.num_ranks)
        self._rank_X = self._tables.slot_rank if self._tables.one_copy else cluster.rank_of_slot_P().astype(np.int32)
        self._running_BG = [[RunningLoad.start(cluster) for _ in ranks] for _ in range(sizes)]
        self._draw_G: list[Drawer] = []
        if not self._tables.one_copy:
            self._draw_G = [choice.drawer(self._tables, rank, cluster) for rank in ranks]

    def served(
        self, ids_TK: npt.NDArray[Any], rows_G: Sequence[npt.NDArray[Any]], step_tokens_B: npt.NDArray[np.int64]
    ) -> Iterator[Served]:
        """(sizes of steps, who serves each assignment in them, [T, K], and the rank of each of these): experts, or
        slots that are drawn."""
        every = slice(0, len(step_tokens_B))
        if self._tables.one_copy:
            unit_TK = ids_TK.astype(np.int32, copy=False)  # so that the kernel is compiled for one type
            yield every, unit_TK, self._rank_X
        elif self._groups is None:
            slot_TK = np.empty(ids_TK.shape, dtype=np.int32)
            for draw, running, rows_R in zip(self._draw_G, self._running_BG[0], rows_G, strict=True):
                slot_RK = np.empty((len(rows_R), ids_TK.shape[1]), dtype=np.int32)
                draw(ids_TK[rows_R].astype(np.int64), running, slot_RK)
                slot_TK[rows_R] = slot_RK
            yield every, slot_TK, self._rank_X
        else:
            for number, tokens in enumerate(step_tokens_B.tolist()):
                slot_TK = np.full(ids_TK.shape, -1, dtype=np.int32)
                for start in range(0, len(ids_TK) - tokens + 1, tokens):
                    within = [rows_R[np.searchsorted(rows_R, start) :] for rows_R in rows_G]
                    within = [rows_R[: np.searchsorted(rows_R, start + tokens)] for rows_R in within]
                    self._share_out(ids_TK, within, self._running_BG[number], slot_TK)
                yield slice(number, number + 1), slot_TK, self._rank_X

    def _share_out(
        self,
        ids_TK: npt.NDArray[Any],
        rows_G: Sequence[npt.NDArray[Any]],
        running_G: Sequence[RunningLoad],
        slot_TK: Slots,
    ) -> None:
        """Write the slots of one step, whose tokens on each rank are `rows_G`."""
        groups = self._groups
        assert groups is not None
        asked_GX = np.zeros((len(rows_G), groups.size + len(rows_G)), dtype=np.int64)
        drawn = []
        for rank, rows_R in enumerate(rows_G):
            group_RK, slot_RK = np.empty((2, len(rows_R), ids_TK.shape[1]), dtype=np.int32)
            ids_RK = ids_TK[rows_R].astype(np.int64)
            ask_step(rank, self._tables, groups, ids_RK, running_G[rank], group_RK, slot_RK, asked_GX[rank])
            drawn.append((rows_R, group_RK, slot_RK))
        share_C = shares_of_step(groups, asked_GX, running_G[0].slowness_G)
        for rank, (rows_R, group_RK, slot_RK) in enumerate(drawn):
            take_slots(groups, share_C, asked_GX[:rank, : groups.size].sum(axis=0), group_RK, slot_RK)
            slot_TK[rows_R] = slot_RK

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
