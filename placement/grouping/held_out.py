"""Homes of requests that were not fitted: decided by the router from the first part of each, as a server would."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.grouping.requests import Requests
from placement.grouping.router import Router
from placement.traces.token_order import token_batches
from placement.traces.trace import Trace


def route_requests(
    router: Router, first: Trace, requests: Requests, tokens_Q: npt.NDArray[np.int64], seed: int
) -> npt.NDArray[np.int32]:
    """Home of every request, int32 [Q]; -1 for those without tokens.

    first     the part of each request that the router sees; of those with none it knows nothing
    tokens_Q  all tokens of each request: what its node then has to carry

    Requests come in a random order that depends on the seed alone; the load of a node is the tokens of the requests
    that it was given before.
    """
    saved_QN = np.zeros((len(requests.ids), router.num_nodes))
    seen_Q = np.zeros(len(requests.ids), dtype=np.int64)
    for tokens in token_batches(first, mixed=False):
        request_T = requests.request_E[tokens.request_T]
        seen_Q += np.bincount(request_T, minlength=len(seen_Q))
        for layer, saved_EN in zip(router.layers, router.saved_MEN, strict=True):
            saved_XN = np.append(saved_EN.astype(np.float64), np.zeros((1, router.num_nodes)), axis=0)  # -1 is the last
            np.add.at(saved_QN, request_T, saved_XN[tokens.ids_TK(layer)].sum(axis=1))
    looked_Q = np.maximum(seen_Q * len(router.layers), 1)
    extra_QN = (saved_QN.max(axis=1, keepdims=True) - saved_QN) / looked_Q[:, None]
    home_Q = np.full(len(requests.ids), -1, dtype=np.int32)
    load_N = np.zeros(router.num_nodes)
    order = np.random.default_rng(np.random.SeedSequence([seed, 0xA221])).permutation(len(home_Q))
    for q in order[tokens_Q[order] > 0]:
        home_Q[q] = router.choose(extra_QN[q], load_N)
        load_N[home_Q[q]] += tokens_Q[q]
    return home_Q
