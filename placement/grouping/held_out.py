"""Homes of requests that were not fitted: decided by the router from what it is told of each, as a server would."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.grouping.requests import Requests
from placement.grouping.router import Router
from placement.traces.prompts import TokenLists
from placement.traces.token_order import token_batches
from placement.traces.trace import Trace

Floats = npt.NDArray[np.float64]


def extra_of_requests(
    router: Router, requests: Requests, first: Trace | None, prompts: TokenLists | None = None, *, labels: bool = False
) -> Floats:
    """What each home sends more than the best as the router sees each request, float64 [Q, N]; alike: nothing is known.

    first    the tokens of each request whose experts the router sees; None: of none
    prompts  the prompts that it sees; None: of none
    labels   whether it sees the labels
    """
    shape = (len(requests.ids), router.num_nodes)
    saved_QN, seen_Q = np.zeros(shape), np.zeros(shape[0])
    for tokens in () if first is None else token_batches(first, mixed=False):
        request_T = requests.request_E[tokens.request_T]
        for layer, saved_EN in zip(router.layers, router.saved_MEN, strict=True):
            saved_XN = np.append(saved_EN.astype(np.float64), np.zeros((1, router.num_nodes)), axis=0)  # -1 is the last
            ids_TK = tokens.ids_TK(layer)
            np.add.at(saved_QN, request_T, saved_XN[ids_TK].sum(axis=1))
            seen_Q += np.bincount(request_T, (ids_TK >= 0).sum(axis=1), len(seen_Q))
    extra_QN = np.zeros(shape)
    for q in range(shape[0]):
        observed = router.top_k * (saved_QN[q].max() - saved_QN[q]) / max(seen_Q[q], 1.0)
        prompt = None if prompts is None or not len(prompts.list_of(q)) else prompts.list_of(q)
        saved_N, _ = router.blended(
            observed, seen_Q[q] / (router.top_k * len(router.layers)), prompt, requests.labels_of(q) if labels else None
        )
        extra_QN[q] = saved_N.max() - saved_N
    return extra_QN


def route_requests(
    router: Router, extra_QN: Floats, tokens_Q: npt.NDArray[np.int64], seed: int, *, order: int = 0
) -> npt.NDArray[np.int32]:
    """Home of every request, int32 [Q]; -1 for those without tokens.

    extra_QN  what is foretold of each, by `extra_of_requests`
    tokens_Q  all tokens of each request: what its node then has to carry

    Requests come in a random order that depends on the seed and the number of the order alone; the load of a node is
    the tokens of the requests that it was given before.
    """
    home_Q = np.full(len(tokens_Q), -1, dtype=np.int32)
    load_N = np.zeros(router.num_nodes)
    salt = [seed, 0xA221, order] if order else [seed, 0xA221]
    order_Q = np.random.default_rng(np.random.SeedSequence(salt)).permutation(len(home_Q))
    for q in order_Q[tokens_Q[order_Q] > 0]:
        home_Q[q] = router.choose(extra_QN[q], load_N)
        load_N[home_Q[q]] += tokens_Q[q]
    return home_Q
