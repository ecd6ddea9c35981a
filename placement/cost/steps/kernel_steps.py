"""What the steps of one layer send and serve, where the slot of every assignment is known (numba)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.cost.sets import set_size
from placement.cost.transports.base import PER_ASSIGNMENT, PER_NODE
from placement.support.kernel import inner_kernel, kernel

ASSIGNMENTS, BUSIEST_GPU, SENDS, BUSIEST_LINK, EXPERTS = 0, 1, 2, 3, 4  # columns of what `cost_steps` writes
COLUMNS = 5


@kernel
def cost_steps(
    unit_TK: npt.NDArray[np.int32],
    rank_X: npt.NDArray[np.int32],
    home_T: npt.NDArray[np.int32],
    step_tokens_B: npt.NDArray[np.int64],
    first_B: npt.NDArray[np.int64],
    copies: int,
    everywhere: bool,
    fare_HX: npt.NDArray[np.float64],
    slowness_G: npt.NDArray[np.float64],
    step_SC: npt.NDArray[np.float64],
) -> None:
    """Write the figures of all full steps, of several sizes in one pass.

    unit_TK        slots, or experts that have one each, [T, K]; -1 fills a short set from its end
    rank_X         rank of each slot or expert
    home_T         home node of each token
    step_tokens_B  tokens of a step of each size
    first_B        the row of the first step of each size in `step_SC`, int64 [B + 1]
    copies         what a token has one copy for, `Transport.copies`; `everywhere`: one for every node
    fare_HX        cost of a copy from node h to node or rank x
    slowness_G     1 / relative speed
    step_SC        float64 [S, 5], a row a step: assignments; the largest load of a rank over the mean load, each
                   divided by speed; fares per token; the largest fares into or out of a node over the mean; the most
                   slots or experts of a rank that serve any token, divided by speed. Of no fares the mean is 0, the
                   largest over the mean 1.
    """
    num_nodes, num_ranks = fare_HX.shape[0], slowness_G.shape[0]
    by_node = copies == PER_NODE
    units = num_nodes if by_node else num_ranks
    seen_X = np.full(units, -1, dtype=np.int64)
    unit_G = np.arange(num_ranks) // (num_ranks // units)
    # of all tokens so far, and of those before the step of each size
    load_X = np.zeros(len(rank_X), dtype=np.int64)
    load_BX = np.zeros((len(step_tokens_B), len(rank_X)), dtype=np.int64)
    copies_HX = np.zeros((num_nodes, units), dtype=np.int64)
    copies_BHX = np.zeros((len(step_tokens_B), num_nodes, units), dtype=np.int64)
    row_B, end_B = first_B.copy(), step_tokens_B.copy()
    for t in range(unit_TK.shape[0]):
        home = home_T[t]
        for k in range(set_size(unit_TK[t])):
            load_X[unit_TK[t, k]] += 1
            x = unit_G[rank_X[unit_TK[t, k]]]
            if copies == PER_ASSIGNMENT or seen_X[x] != t:
                seen_X[x] = t
                copies_HX[home, x] += 1
        if everywhere:
            for x in range(units):
                if seen_X[x] != t:
                    copies_HX[home, x] += 1
        for b in range(len(step_tokens_B)):
            if t + 1 == end_B[b]:
                step_C = step_SC[row_B[b]]
                _write_loads(load_X - load_BX[b], rank_X, slowness_G, step_C)
                _write_copies(copies_HX - copies_BHX[b], fare_HX, step_tokens_B[b], step_C)
                load_BX[b], copies_BHX[b] = load_X, copies_HX
                row_B[b] += 1
                end_B[b] += step_tokens_B[b]


@inner_kernel
def _write_loads(
    load_X: npt.NDArray[np.int64],
    rank_X: npt.NDArray[np.int32],
    slowness_G: npt.NDArray[np.float64],
    step_C: npt.NDArray[np.float64],
) -> None:
    num_ranks = len(slowness_G)
    load_G, experts_G = np.zeros(num_ranks), np.zeros(num_ranks)
    served = 0
    for x in range(len(load_X)):
        served += load_X[x]
        load_G[rank_X[x]] += load_X[x] * slowness_G[rank_X[x]]
        experts_G[rank_X[x]] += slowness_G[rank_X[x]] if load_X[x] else 0.0
    step_C[ASSIGNMENTS] = served
    step_C[BUSIEST_GPU] = load_G.max() * num_ranks / served if served > 0 else 1.0
    step_C[EXPERTS] = experts_G.max()


@inner_kernel
def _write_copies(
    copies_HX: npt.NDArray[np.int64],
    fare_HX: npt.NDArray[np.float64],
    step_tokens: int,
    step_C: npt.NDArray[np.float64],
) -> None:
    num_nodes, units = copies_HX.shape
    into_N, out_N = np.zeros(num_nodes), np.zeros(num_nodes)
    sends, between = 0.0, 0.0
    for h in range(num_nodes):
        for x in range(units):
            fare = copies_HX[h, x] * fare_HX[h, x]
            node = x * num_nodes // units
            sends += fare
            if node != h:
                between += fare
                into_N[node] += fare
                out_N[h] += fare
    step_C[SENDS] = sends / step_tokens
    step_C[BUSIEST_LINK] = max(into_N.max(), out_N.max()) * num_nodes / between if between > 0 else 1.0


def first_rows(num_tokens: int, step_tokens_B: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where the steps of each size begin among the rows of all full steps, int64 [B + 1]."""
    return np.concatenate([[0], np.cumsum(num_tokens // step_tokens_B)]).astype(np.int64)
