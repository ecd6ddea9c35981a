"""Kernels of the description of a trace (numba, cached on disk, without the GIL)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.kernel import kernel


@kernel
def count_experts(ids_TK: npt.NDArray[Any], row_T: npt.NDArray[np.int64], count_RE: npt.NDArray[np.uint32]) -> None:
    """Add the experts of every token to its row; row -1 is left out."""
    for t in range(ids_TK.shape[0]):
        row = row_T[t]
        if row >= 0:
            for k in range(ids_TK.shape[1]):
                if ids_TK[t, k] < 0:
                    break
                count_RE[row, ids_TK[t, k]] += np.uint32(1)


@kernel
def count_nodes(
    ids_TK: npt.NDArray[Any],
    row_T: npt.NDArray[np.int64],
    node_E: npt.NDArray[np.int64],
    touched_RN: npt.NDArray[np.int64],
) -> None:
    """Add 1 for every distinct node that serves an expert of a token to the token's row; row -1 is left out."""
    last_N = np.full(touched_RN.shape[1], -1, dtype=np.int64)
    for t in range(ids_TK.shape[0]):
        row = row_T[t]
        if row >= 0:
            for k in range(ids_TK.shape[1]):
                if ids_TK[t, k] < 0:
                    break
                node = node_E[ids_TK[t, k]]
                if last_N[node] != t:
                    last_N[node] = t
                    touched_RN[row, node] += 1


@kernel
def pack_evenly(load_E: npt.NDArray[np.float64], num_ranks: int) -> npt.NDArray[np.int64]:
    """Rank of every expert, int64 [E]: the heaviest first, each to the least loaded rank that has room."""
    num_experts = load_E.shape[0]
    room = np.full(num_ranks, num_experts // num_ranks)
    room[: num_experts % num_ranks] += 1
    load_G = np.zeros(num_ranks)
    rank_E = np.empty(num_experts, dtype=np.int64)
    for expert in np.argsort(-load_E, kind="mergesort"):
        best = -1
        for rank in range(num_ranks):
            if room[rank] > 0 and (best < 0 or load_G[rank] < load_G[best]):
                best = rank
        rank_E[expert] = best
        load_G[best] += load_E[expert]
        room[best] -= 1
    return rank_E


@kernel
def count_overlap(ids_TK: npt.NDArray[Any], previous_T: npt.NDArray[np.int64]) -> tuple[int, int]:
    """Of the tokens that have a previous one: experts that they share with their previous token, and all experts."""
    shared = experts = 0
    for t in range(ids_TK.shape[0]):
        p = previous_T[t]
        if p < 0:
            continue
        for k in range(ids_TK.shape[1]):
            if ids_TK[t, k] < 0:
                break
            experts += 1
            for j in range(ids_TK.shape[1]):
                if ids_TK[t, k] == ids_TK[p, j]:
                    shared += 1
    return shared, experts
