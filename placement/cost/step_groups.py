"""Assignments of a step by who may serve them: what a step's tokens ask for, told in a few numbers a layer.

Assignments of one expert by tokens that visit the same of its nodes are one group: any copy on those nodes may serve
them. A row of numbers says how many a rank has of each group, and by rank how many go to experts with one copy.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from placement.cost.covers import COUNT_0
from placement.cost.draw_slots import drawn_nodes, routed
from placement.cost.kernel_balanced import RunningLoad, balanced_scratch, count_token
from placement.cost.kernel_step_flow import assign_step
from placement.cost.lookup_tables import LayerTables
from placement.support.hash64 import GOLDEN, mix_word
from placement.support.kernel import inner_kernel, kernel

Ints = npt.NDArray[np.int64]
MOST_GROUPS = 1 << 14  # of a layer: what ranks tell one another in every step stays below 128 KB
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


class StepGroups(NamedTuple):
    """The groups of one layer.

    first_E    int64 [E], group of expert e whose tokens visit the nodes `mask` of those that host e, as bits counted
               from the lowest host: first_E[e] + mask; -1 where e has one copy
    ptr_J      int64 [J + 1], the copies that may serve group j are entries ptr_J[j] : ptr_J[j + 1] of the next two
    slot_C     int64 [C], slot of the copy
    rank_C     int32 [C], its rank
    """

    first_E: Ints
    ptr_J: Ints
    slot_C: Ints
    rank_C: npt.NDArray[np.int32]

    @property
    def size(self) -> int:
        """Numbers of a row before those of single copies."""
        return len(self.ptr_J) - 1


def step_groups(tables: LayerTables) -> StepGroups | None:
    """None for a layer of more groups than ranks should tell one another."""
    several_E = np.diff(tables.slot_ptr_E) > 1
    hosts_E = np.array([int(host).bit_count() for host in tables.host_E])
    groups_E = np.where(several_E, 2.0**hosts_E, 0.0)
    if groups_E.sum() > MOST_GROUPS:
        return None
    first_E = np.where(several_E, np.cumsum(groups_E) - groups_E, -1).astype(np.int64)
    copies: list[Ints] = []
    for expert in np.flatnonzero(several_E).tolist():
        held = np.arange(tables.slot_ptr_E[expert], tables.slot_ptr_E[expert + 1])
        bit = np.unique(tables.slot_node[held], return_inverse=True)[1]
        copies += [held[mask >> bit & 1 == 1] for mask in range(1 << int(hosts_E[expert]))]
    ptr_J = np.cumsum([0, *map(len, copies)]).astype(np.int64)
    entry_C = np.concatenate(copies) if copies else np.zeros(0, dtype=np.int64)
    return StepGroups(first_E, ptr_J, tables.slot_id[entry_C], tables.slot_rank[entry_C])


@kernel
def ask_step(
    rank: int,
    tables: LayerTables,
    groups: StepGroups,
    ids_TK: npt.NDArray[Any],
    running: RunningLoad,
    group_TK: npt.NDArray[np.int32],
    slot_TK: npt.NDArray[np.int32],
    asked_X: Ints,
) -> None:
    """Write the group of each assignment of `rank`, -1 where the expert has one copy, whose slot is written instead.

    Tokens visit the nodes that they visit under `min-nodes-balanced`, where `rank` counts its own tokens.

    asked_X  int64 [J + G], how many of each group, then of single copies by rank; added to
    """
    top_k, single = ids_TK.shape[1], len(groups.ptr_J) - 1
    home_bit = _ONE << np.uint64(rank // (tables.num_ranks // tables.num_nodes))
    scratch = balanced_scratch(top_k)
    place_M = np.empty(top_k, dtype=np.int64)
    ids_M = np.empty(top_k, dtype=np.int64)
    for t in range(ids_TK.shape[0]):
        size = routed(ids_TK[t], slot_TK[t], ids_M, place_M)
        group_TK[t] = -1
        word = mix_word(np.uint64(running.seen_1[0]) * GOLDEN + mix_word(np.uint64(rank)))
        visited = home_bit | drawn_nodes(ids_M[:size], home_bit, word, tables, scratch.open_K, scratch.covers)
        for i in range(size):
            first = groups.first_E[ids_M[i]]
            if first < 0:
                copy = tables.slot_ptr_E[ids_M[i]]
                slot_TK[t, place_M[i]] = tables.slot_id[copy]
                asked_X[single + tables.slot_rank[copy]] += 1
            else:
                group = first + _hosts_among(tables.host_E[ids_M[i]], visited)
                group_TK[t, place_M[i]] = group
                asked_X[group] += 1
        count_token(running)


@kernel
def take_slots(
    groups: StepGroups,
    share_C: Ints,
    before_J: Ints,
    group_TK: npt.NDArray[np.int32],
    slot_TK: npt.NDArray[np.int32],
) -> None:
    """Write the slots of a rank's groups: copies serve their shares one after another, ranks in the order of numbers.

    share_C   int64 [C], how many assignments of its group each copy serves, of all ranks together
    before_J  int64 [J], how many assignments of each group the ranks before this one have; changed
    """
    at_J, left_J = groups.ptr_J[:-1].copy(), np.zeros(len(before_J), dtype=np.int64)
    for j in range(len(before_J)):
        left_J[j] = -before_J[j]
    for t in range(group_TK.shape[0]):
        for k in range(group_TK.shape[1]):
            j = group_TK[t, k]
            if j < 0:
                continue
            while left_J[j] <= 0:
                left_J[j] += share_C[at_J[j]]
                at_J[j] += 1
            left_J[j] -= 1
            slot_TK[t, k] = groups.slot_C[at_J[j] - 1]


@inner_kernel
def _hosts_among(host: np.uint64, visited: np.uint64) -> int:
    """The visited nodes of those that host an expert, as bits counted from the lowest host."""
    mask, place = COUNT_0, COUNT_0
    while host != _ZERO:
        lowest = host & (~host + _ONE)
        if lowest & visited != _ZERO:
            mask |= 1 << place
        place += 1
        host ^= lowest
    return mask


def shares_of_step(groups: StepGroups, asked_GX: Ints, slowness_G: npt.NDArray[np.float64]) -> Ints:
    """How many assignments of its group each copy serves, int64 [C], of what all ranks ask for: the same on all."""
    share_C, total_X = np.empty(len(groups.rank_C), dtype=np.int64), asked_GX.sum(axis=0)
    assign_step(total_X[: groups.size], groups.ptr_J, groups.rank_C, total_X[groups.size :], slowness_G, share_C)
    return share_C
