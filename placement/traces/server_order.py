"""The tokens of a trace in the order in which a server of several ranks would run them, and their home ranks.

A trace stores one request after another. A server runs many at once: in decode every step takes one token of each of
many requests, in prefill every rank works off its own requests one after another. So of decode the tokens come in a
seeded random order; of prefill the requests do, each with its tokens in order, and each rank has an equal part of that
row. All ranks bring as many tokens to a step. Where homes are given, each node has its own requests, and brings to each
step its share of the tokens: more than others where it has more.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.core.shape import Shape
from placement.support.batches import batches
from placement.support.hash64 import GOLDEN, mix
from placement.traces.token_order import MIXED_TOKENS, TokenBatch
from placement.traces.trace import Trace

STEPS_AT_ONCE = 8  # of the largest steps, as many as are in memory at least


class ServerWindow(NamedTuple):
    """Tokens that are mixed with one another, in order.

    tokens  with their experts
    rank_T  home rank of each token, int32
    """

    tokens: TokenBatch
    rank_T: npt.NDArray[np.int32]


def server_windows(
    trace: Trace, shape: Shape, *, home_Q: npt.NDArray[np.int32] | None, one_by_one: bool, most_step: int, seed: int
) -> Iterator[ServerWindow]:
    """All kept tokens, a bounded number at a time: the windows grow with `most_step`, not with the trace.

    Args:
        shape: Where the ranks are.
        home_Q: Home node of every request, int32 [Q], -1: seeded uniform; None: tokens are dealt to all ranks alike.
        one_by_one: True for prefill: a rank runs one request after another; False: tokens of all requests mixed.
        most_step: Tokens of the largest step, all ranks together.
        seed: Seed of the order.
    """
    for blocks in batches(trace.blocks(), lambda block: len(block.request_T), window_tokens(most_step)):
        request_T = np.concatenate([block.request_T for block in blocks])
        number_T = request_T if one_by_one else np.arange(len(request_T))
        row_T = np.argsort(_words(number_T, seed), kind="stable")
        order_T, rank_T = _run_order(row_T, None if home_Q is None else _homes(home_Q, request_T, shape, seed), shape)
        tokens = TokenBatch(trace=trace, blocks=blocks, order_T=order_T, request_T=request_T[order_T])
        yield ServerWindow(tokens, rank_T)


def window_tokens(most_step: int) -> int:
    """The most tokens of a window, for steps of at most so many."""
    return max(MIXED_TOKENS, STEPS_AT_ONCE * most_step)


def _words(number_X: npt.NDArray[np.integer], seed: int) -> npt.NDArray[np.uint64]:
    """A pseudo-random word for each number, another with another seed."""
    start = mix(np.array([seed], dtype=np.uint64) + GOLDEN)
    return mix(number_X.astype(np.uint64) * GOLDEN + start)


def _homes(
    home_Q: npt.NDArray[np.int32], request_T: npt.NDArray[np.int32], shape: Shape, seed: int
) -> npt.NDArray[np.int64]:
    """Home node of each token, int64 [T]; a request without one gets any node."""
    drawn_T = (_words(request_T, seed) >> np.uint64(11)) % np.uint64(shape.num_nodes)
    return np.where(home_Q[request_T] < 0, drawn_T.astype(np.int64), home_Q[request_T])


def _run_order(
    row_T: npt.NDArray[np.int64], home_T: npt.NDArray[np.int64] | None, shape: Shape
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """(rows in the order of running, home rank of each): `row_T` is dealt to the ranks, of each node its own rows."""
    if home_T is None:
        place_T, rank_T = _streams(len(row_T), shape.num_ranks)
        return row_T[place_T], rank_T
    rows, ranks, times = [], [], []
    for node in range(shape.num_nodes):
        mine = row_T[home_T[row_T] == node]
        place_T, rank_T = _streams(len(mine), shape.gpus_per_node)
        rows.append(mine[place_T])
        ranks.append(rank_T + np.int32(node * shape.gpus_per_node))
        times.append((np.arange(len(mine)) + 0.5) / max(len(mine), 1))
    order_T = np.argsort(np.concatenate(times), kind="stable")
    return np.concatenate(rows)[order_T], np.concatenate(ranks)[order_T]


def _streams(size: int, num_ranks: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Each rank has an equal part of `size` places and takes one after another: (place, rank) in the order of time."""
    start_G = np.arange(num_ranks + 1) * size // num_ranks
    rank_T = np.repeat(np.arange(num_ranks), np.diff(start_G))
    turn_T = np.arange(size) - start_G[rank_T]
    order_T = np.argsort(turn_T * num_ranks + rank_T, kind="stable")
    return order_T, rank_T[order_T].astype(np.int32)
