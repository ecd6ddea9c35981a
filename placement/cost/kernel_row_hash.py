"""What a layer's map sends and serves where one hash of a token's row picks the replicas of all its experts (numba).

vLLM 0.33.0, `fused_moe/router/base_router.py`: of `n` replicas, by slot, the one at `row * 2654435769 % 2^32 % n`. Rows
are spread evenly over the hash's values, so a token costs the mean over the residues of the hash modulo the least
common multiple of its experts' counts of replicas. Up to MOST_RESIDUES that is exact; beyond, a token costs the mean
over the first MOST_RESIDUES rows of a batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from placement.cost.kernel_balanced import RunningLoad, count_token
from placement.cost.kernel_homes import book_homes
from placement.cost.kernel_ranks import add_anywhere, book_single_copies
from placement.cost.lookup_tables import LayerTables
from placement.cost.sets import set_size
from placement.cost.traffic import Traffic
from placement.support.kernel import inlined_kernel, inner_kernel, kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
MOST_RESIDUES: int = np.int64(2520)  # type: ignore[assignment]  # the multiple of all numbers up to 10
_KNUTH, _WORD = np.uint64(2654435769), np.uint64(0xFFFFFFFF)
_ONE = np.uint64(1)


class Listed(NamedTuple):
    """The replicas of each expert as an engine lists them: every slot, those of one rank one by one.

    ptr_E   int64 [E+1], those of expert e are entries ptr[e] : ptr[e+1] of the next
    copy_P  int64 [P], the copy (of `LayerTables`) that each slot is
    """

    ptr_E: Ints
    copy_P: Ints


@kernel
def cost_by_row_hash(
    ids_TK: npt.NDArray[Any],
    count_T: Ints,
    home_T: npt.NDArray[np.int32],
    listed: Listed,
    tables: LayerTables,
    traffic: Traffic,
    load_P: Floats,
) -> int:
    """Add what the tokens cost; returns how many have more than MOST_RESIDUES residues."""
    several_K = np.empty(ids_TK.shape[1], dtype=np.int64)
    node_K, rank_K = np.empty(len(several_K), dtype=np.int32), np.empty(len(several_K), dtype=np.int32)
    seen_G = np.full(tables.num_ranks, -1, dtype=np.int64)
    anywhere_N, anywhere_G = np.zeros(tables.num_nodes), np.zeros(tables.num_ranks)
    assigned_G = np.zeros(tables.num_ranks)
    sampled = 0
    for t in range(ids_TK.shape[0]):
        home, times = home_T[t], count_T[t]
        rows = (anywhere_N, anywhere_G, assigned_G)
        if home >= 0:
            rows = (traffic.node_HN[home], traffic.rank_HG[home], traffic.assignment_HG[home])
        row_N, row_G, served_G = rows
        num_several, forced = book_single_copies(ids_TK[t], t, times, tables, rows, seen_G, load_P, several_K)
        if num_several == 0:
            continue
        residues = _residues(several_K[:num_several], listed)
        exact = residues <= MOST_RESIDUES
        if not exact:
            residues = MOST_RESIDUES
            sampled += times
        weight = times / residues
        for r in range(residues):
            value = np.uint64(r) if exact else row_hash(r)
            for k in range(num_several):
                copy = copy_of(several_K[k], value, listed)
                node_K[k], rank_K[k] = tables.slot_node[copy], tables.slot_rank[copy]
                load_P[tables.slot_id[copy]] += weight
                served_G[rank_K[k]] += weight
                new_node, new_rank = forced >> np.uint64(node_K[k]) & _ONE == 0, seen_G[rank_K[k]] != t
                for other in range(k):
                    new_node = new_node and node_K[other] != node_K[k]
                    new_rank = new_rank and rank_K[other] != rank_K[k]
                if new_node:
                    row_N[node_K[k]] += weight
                if new_rank:
                    row_G[rank_K[k]] += weight
    add_anywhere(traffic, anywhere_N, anywhere_G, assigned_G)
    return sampled


@inlined_kernel
def row_hash(row: int) -> np.uint64:
    """vLLM's hash of the row of a token in its batch."""
    return np.uint64(row) * _KNUTH & _WORD


@inlined_kernel
def copy_of(e: int, value: np.uint64, listed: Listed) -> int:
    """The copy of `e` that serves a token whose row has this hash, or this residue of one."""
    first = listed.ptr_E[e]
    return listed.copy_P[first + np.int64(value % np.uint64(listed.ptr_E[e + 1] - first))]  # type: ignore[no-any-return]


@inner_kernel
def _residues(several_M: Ints, listed: Listed) -> int:
    """The least common multiple of the counts of replicas, or more than MOST_RESIDUES."""
    multiple = 1
    for e in several_M:
        count = listed.ptr_E[e + 1] - listed.ptr_E[e]
        a, b = multiple, count
        while b != 0:
            a, b = b, a % b
        multiple *= count // a
        if multiple > MOST_RESIDUES:
            break
    return multiple


@kernel
def draw_by_row_hash(
    listed: Listed,
    tables: LayerTables,
    ids_TK: npt.NDArray[Any],
    running: RunningLoad,
    slot_TK: npt.NDArray[np.int32],
) -> None:
    """Write the slot that serves each expert to `slot_TK`; -1 for an id below 0. Tokens are rows in their order."""
    for t in range(ids_TK.shape[0]):
        value = row_hash(running.seen_1[0])
        for k in range(ids_TK.shape[1]):
            slot_TK[t, k] = -1
            if ids_TK[t, k] >= 0:
                slot_TK[t, k] = tables.slot_id[copy_of(int(ids_TK[t, k]), value, listed)]
        count_token(running)


@kernel
def homes_by_row_hash(
    listed: Listed,
    tables: LayerTables,
    fare_HN: Floats,
    distinct: bool,
    ids_TK: npt.NDArray[Any],
    request_T: npt.NDArray[np.int32],
    cost_QN: Floats,
    saved_EN: Floats,
) -> None:
    """What tokens send from each home that they might have: see `placement.cost.kernel_homes`."""
    num_nodes, top_k = fare_HN.shape[0], ids_TK.shape[1]
    cost_N, hosted_K = np.empty(num_nodes), np.empty(top_k, dtype=np.uint64)
    expert_K, times_N = np.empty(top_k, dtype=np.int64), np.zeros(num_nodes)
    for t in range(ids_TK.shape[0]):
        ids_M = ids_TK[t, : set_size(ids_TK[t])]
        for k in range(len(ids_M)):
            expert_K[k], hosted_K[k] = ids_M[k], tables.host_E[ids_M[k]]
        residues = _residues(expert_K[: len(ids_M)], listed)
        exact = residues <= MOST_RESIDUES
        if not exact:
            residues = MOST_RESIDUES
        times_N[:] = 0.0
        for r in range(residues):
            value = np.uint64(r) if exact else row_hash(r)
            visited = np.uint64(0)
            for k in range(len(ids_M)):
                node = tables.slot_node[copy_of(expert_K[k], value, listed)]
                bit = _ONE << np.uint64(node)
                if not distinct or visited & bit == 0:
                    times_N[node] += 1.0 / residues
                visited |= bit
        for h in range(num_nodes):
            cost_N[h] = 0.0
            for n in range(num_nodes):
                cost_N[h] += fare_HN[h, n] * times_N[n]
        book_homes(ids_M, request_T[t], hosted_K, cost_N, cost_QN, saved_EN)
