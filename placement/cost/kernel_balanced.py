"""The replica choice `min-nodes-balanced`: as few nodes as `min-nodes`, chosen among equals by running load (numba).

Prices are each rank's load so far, decayed; they change every WINDOW tokens, so that a runtime can follow the same rule
with counters that it exchanges now and then. Tokens come as in a server's batches, requests mixed
(`placement.traces.token_order`). For a token and a home, of all smallest covers the one whose copies are cheapest in
sum is taken; an expert is served by its cheapest copy on any node that the token visits anyway, the home included.
Sends to nodes are those of `min-nodes`; only the loads differ.

On a split of a real trace (gpt-oss-20b, R=8, 4 nodes x 2 GPUs) the imbalance comes within 0.004 of the least that any
choice among smallest covers has, by linear programming with all tokens known. Prices that grow exponentially with the
load, or change with every token, gain 0.003 at most. In the order of the trace, one data set after another, half of the
gain is lost: what was balanced for one data set is not mended by the next.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.covers import COUNT_0, MAX_COVERS, pivot_of, smallest_covers
from placement.cost.lookup_tables import LayerTables
from placement.cost.sets import set_size
from placement.cost.traffic import Traffic
from placement.support.kernel import inner_kernel, kernel

WINDOW = 256
DECAY = 0.99
_ONE = np.uint64(1)
_ZERO = np.uint64(0)


class RunningLoad(NamedTuple):
    """What the rule remembers of the tokens so far, for one layer; the kernel writes to it.

    price_G    float64 [G], decayed load of each rank up to the last window
    window_G   float64 [G], load since then
    seen_1     int64 [1], tokens so far
    slowness_G float64 [G], 1 / relative speed: a slow rank's load counts for more
    """

    price_G: npt.NDArray[np.float64]
    window_G: npt.NDArray[np.float64]
    seen_1: npt.NDArray[np.int64]
    slowness_G: npt.NDArray[np.float64]

    @staticmethod
    def start(cluster: Cluster) -> RunningLoad:
        """Of no token yet."""
        num_ranks = cluster.num_ranks
        return RunningLoad(
            np.zeros(num_ranks), np.zeros(num_ranks), np.zeros(1, dtype=np.int64), 1.0 / cluster.speed_G()
        )


@kernel
def cost_balanced(
    ids_TK: npt.NDArray[Any],
    home_T: npt.NDArray[np.int32],
    tables: LayerTables,
    traffic: Traffic,
    load_P: npt.NDArray[np.float64],
    running: RunningLoad,
) -> None:
    """Add the cost of tokens in order, as `cost_replicated`; `running` goes on from call to call."""
    window_G, slowness_G = running.window_G, running.slowness_G
    scratch = balanced_scratch(ids_TK.shape[1])
    stamp_G = np.full(tables.num_ranks, -1, dtype=np.int64)
    mark = 0
    for t in range(ids_TK.shape[0]):
        ids_M = ids_TK[t, : set_size(ids_TK[t])]
        first, last = (0, tables.num_nodes) if home_T[t] < 0 else (home_T[t], home_T[t] + 1)
        weight = 1.0 / (last - first)
        for home in range(first, last):
            balanced_copies(ids_M, home, tables, running.price_G, scratch)
            mark += 1
            nodes = _ZERO
            for s in scratch.best_K[: len(ids_M)]:
                node, rank = tables.slot_node[s], tables.slot_rank[s]
                load_P[tables.slot_id[s]] += weight
                window_G[rank] += weight * slowness_G[rank]
                traffic.assignment_HG[home, rank] += weight
                if stamp_G[rank] != mark:
                    stamp_G[rank] = mark
                    traffic.rank_HG[home, rank] += weight
                if nodes >> np.uint64(node) & _ONE == _ZERO:
                    nodes |= _ONE << np.uint64(node)
                    traffic.node_HN[home, node] += weight
        count_token(running)


@inner_kernel
def count_token(running: RunningLoad) -> None:
    """One token more has been served; prices change where a window ends."""
    running.seen_1[0] += 1
    if running.seen_1[0] % WINDOW == 0:
        for g in range(len(running.price_G)):
            running.price_G[g] = DECAY * running.price_G[g] + running.window_G[g]
            running.window_G[g] = 0.0


class BalancedScratch(NamedTuple):
    """Room for one token; `best_K` is the answer: entries of `LayerTables.slot_id`."""

    open_K: npt.NDArray[np.uint64]
    covers: npt.NDArray[np.uint64]
    best_K: npt.NDArray[np.int64]
    trial_K: npt.NDArray[np.int64]


@inner_kernel
def balanced_scratch(top_k: int) -> BalancedScratch:
    return BalancedScratch(
        np.empty(top_k, dtype=np.uint64),
        np.empty(MAX_COVERS, dtype=np.uint64),
        np.empty(top_k, dtype=np.int64),
        np.empty(top_k, dtype=np.int64),
    )


@inner_kernel
def balanced_copies(
    ids_K: npt.NDArray[Any], home: int, tables: LayerTables, price_G: npt.NDArray[np.float64], scratch: BalancedScratch
) -> None:
    """The rule itself, for one token at one home: writes the first `len(ids_K)` entries of `scratch.best_K`."""
    top_k = len(ids_K)
    base = _ONE << np.uint64(home)
    for k in range(top_k):
        host = tables.host_E[ids_K[k]]
        if host & (host - _ONE) == _ZERO:
            base |= host
    num_open = COUNT_0
    for k in range(top_k):
        host = tables.host_E[ids_K[k]]
        if host & base == _ZERO:
            scratch.open_K[num_open] = host
            num_open += 1
    pivot = pivot_of(ids_K, tables.num_nodes)
    found = smallest_covers(scratch.open_K, num_open, pivot, tables.num_nodes, scratch.covers)
    best = np.inf
    for c in range(found):
        price = _cheapest_copies(ids_K, base | scratch.covers[c], tables, price_G, scratch.trial_K)
        if price < best:
            best = price
            scratch.best_K[:top_k] = scratch.trial_K[:top_k]


@inner_kernel
def _cheapest_copies(
    ids_K: npt.NDArray[Any],
    allowed: np.uint64,
    tables: LayerTables,
    price_G: npt.NDArray[np.float64],
    copy_K: npt.NDArray[np.int64],
) -> float:
    """Write the cheapest copy of each expert on allowed nodes to `copy_K`; returns the sum of their prices."""
    total = 0.0
    for k in range(ids_K.shape[0]):
        best = np.inf
        for s in range(tables.slot_ptr_E[ids_K[k]], tables.slot_ptr_E[ids_K[k] + 1]):
            if allowed >> np.uint64(tables.slot_node[s]) & _ONE and price_G[tables.slot_rank[s]] < best:
                best = price_G[tables.slot_rank[s]]
                copy_K[k] = s
        total += best
    return total
