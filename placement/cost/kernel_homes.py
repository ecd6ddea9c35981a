"""What a token sends from each home it might have, given where the experts are (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.cost.covers import COUNT_0, MAX_COVERS, pivot_of, popcount, smallest_covers
from placement.cost.sets import set_size
from placement.support.kernel import inner_kernel, kernel

Floats = npt.NDArray[np.float64]
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


@kernel
def cost_of_single(
    unit_E: npt.NDArray[np.int64],
    node_E: npt.NDArray[np.int64],
    fare_HX: Floats,
    distinct: bool,
    ids_TK: npt.NDArray[Any],
    request_T: npt.NDArray[np.int32],
    cost_QN: Floats,
    saved_EN: Floats,
) -> None:
    """Every expert has one copy: a token pays the fare of every (distinct) unit that it visits."""
    num_homes, top_k = fare_HX.shape[0], ids_TK.shape[1]
    cost_N, hosted_K = np.empty(num_homes), np.empty(top_k, dtype=np.uint64)
    for t in range(ids_TK.shape[0]):
        ids_M = ids_TK[t, : set_size(ids_TK[t])]
        cost_N[:] = 0.0
        for k in range(len(ids_M)):
            e = ids_M[k]
            hosted_K[k] = _ONE << np.uint64(node_E[e])
            new = True
            if distinct:
                for other in range(k):
                    new = new and unit_E[ids_M[other]] != unit_E[e]
            if new:
                for h in range(num_homes):
                    cost_N[h] += fare_HX[h, unit_E[e]]
        book_homes(ids_M, request_T[t], hosted_K, cost_N, cost_QN, saved_EN)


@kernel
def cost_of_covers(
    host_E: npt.NDArray[np.uint64],
    fare_HN: Floats,
    distinct: bool,
    ids_TK: npt.NDArray[Any],
    request_T: npt.NDArray[np.int32],
    cost_QN: Floats,
    saved_EN: Floats,
) -> None:
    """Copies are chosen by smallest covers (`min-nodes`): the home hosts what it can, the fewest nodes the rest."""
    num_nodes, top_k = fare_HN.shape[0], ids_TK.shape[1]
    cost_N, hosted_K = np.empty(num_nodes), np.empty(top_k, dtype=np.uint64)
    open_K, covers = np.empty(top_k, dtype=np.uint64), np.empty(MAX_COVERS, dtype=np.uint64)
    for t in range(ids_TK.shape[0]):
        ids_M = ids_TK[t, : set_size(ids_TK[t])]
        forced, hosts = _ZERO, _ZERO
        for k in range(len(ids_M)):
            host = host_E[ids_M[k]]
            hosted_K[k] = host
            if host & (host - _ONE) == _ZERO:
                forced |= host
            else:
                hosts |= host
        pivot = pivot_of(ids_M, num_nodes)
        found = 0  # covers of the homes that host none of several copies, which choose alike
        for h in range(num_nodes):
            home = _ONE << np.uint64(h)
            stranger = hosts & home == _ZERO
            if not stranger or found == 0:
                num_open = COUNT_0
                for k in range(len(ids_M)):
                    if hosted_K[k] & (forced | home) == _ZERO:
                        open_K[num_open] = hosted_K[k]
                        num_open += 1
                found = smallest_covers(open_K, num_open, pivot, num_nodes, covers)
            cost_N[h] = 0.0
            for c in range(found):
                used = forced | covers[c]
                cost = 0.0
                if distinct:
                    left = used
                    while left != _ZERO:
                        cost += fare_HN[h, popcount((left & (~left + _ONE)) - _ONE)]
                        left &= left - _ONE
                else:
                    for k in range(len(ids_M)):
                        usable = hosted_K[k] & home
                        if usable == _ZERO:
                            usable = hosted_K[k] & used
                        share = 1.0 / popcount(usable)
                        while usable != _ZERO:
                            cost += share * fare_HN[h, popcount((usable & (~usable + _ONE)) - _ONE)]
                            usable &= usable - _ONE
                cost_N[h] += cost / found
            if not stranger:
                found = 0
        book_homes(ids_M, request_T[t], hosted_K, cost_N, cost_QN, saved_EN)


@kernel
def cost_of_chances(
    host_E: npt.NDArray[np.uint64],
    chance_EOX: Floats,
    fare_HX: Floats,
    distinct: bool,
    ids_TK: npt.NDArray[Any],
    request_T: npt.NDArray[np.int32],
    cost_QN: Floats,
    saved_EN: Floats,
) -> None:
    """Copies are chosen by chance: `chance_EOX` is that of expert e being served at unit x for origin o.

    Origins are homes, or the ranks of each home, of which every one is as likely.
    """
    (num_homes, num_units), top_k = fare_HX.shape, ids_TK.shape[1]
    origins = chance_EOX.shape[1] // num_homes
    cost_N, hosted_K = np.empty(num_homes), np.empty(top_k, dtype=np.uint64)
    for t in range(ids_TK.shape[0]):
        ids_M = ids_TK[t, : set_size(ids_TK[t])]
        for k in range(len(ids_M)):
            hosted_K[k] = host_E[ids_M[k]]
        for h in range(num_homes):
            cost_N[h] = 0.0
            for o in range(h * origins, (h + 1) * origins):
                for x in range(num_units):
                    miss, sum_of_chances = 1.0, 0.0
                    for k in range(len(ids_M)):
                        chance = chance_EOX[ids_M[k], o, x]
                        miss *= 1.0 - chance
                        sum_of_chances += chance
                    cost_N[h] += fare_HX[h, x] * (1.0 - miss if distinct else sum_of_chances) / origins
        book_homes(ids_M, request_T[t], hosted_K, cost_N, cost_QN, saved_EN)


@inner_kernel
def book_homes(
    ids_M: npt.NDArray[Any],
    request: int,
    hosted_K: npt.NDArray[np.uint64],
    cost_N: Floats,
    cost_QN: Floats,
    saved_EN: Floats,
) -> None:
    """Add a token's costs to its request, and what each home saves, in equal parts, to the experts that it hosts."""
    dearest = cost_N.max()
    for n in range(cost_N.shape[0]):
        cost_QN[request, n] += cost_N[n]
        saved = dearest - cost_N[n]
        if saved <= 0.0:
            continue
        near = 0
        for k in range(ids_M.shape[0]):
            near += 1 if hosted_K[k] >> np.uint64(n) & _ONE else 0
        for k in range(ids_M.shape[0]):
            if near == 0 or hosted_K[k] >> np.uint64(n) & _ONE:
                saved_EN[ids_M[k], n] += saved / (near if near > 0 else ids_M.shape[0])
