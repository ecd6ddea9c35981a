"""Homes of requests that were not fitted: decided by the router from what it is told of each, as a server would."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.grouping.requests import Requests
from placement.grouping.router import Router, weighed
from placement.traces.prompts import TokenLists
from placement.traces.token_order import token_batches
from placement.traces.trace import Trace

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Foretold:
    """What the router foretells of requests before they run.

    saved_QN  float64 [Q, N], sends saved per token and layer at each home
    worth_Q   float64 [Q], how many observed tokens tell as much
    known_Q   bool [Q], whether it was told anything of the request
    """

    saved_QN: Floats
    worth_Q: Floats
    known_Q: npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Observed:
    """What the router sees of requests that run.

    saved_QN   float64 [Q, N], as `Foretold.saved_QN`
    tokens_Q   float64 [Q], from so many of their tokens
    """

    saved_QN: Floats
    tokens_Q: Floats


def foretold_of(
    router: Router,
    requests: Requests,
    asked_Q: npt.NDArray[np.bool_],
    prompts: TokenLists | None = None,
    *,
    labels: bool = False,
) -> Foretold:
    """What the router foretells of the requests that are asked for, from their prompts (None: of none) and labels."""
    saved_QN, worth_Q = np.zeros((len(requests.ids), router.num_nodes)), np.zeros(len(requests.ids))
    known_Q = np.zeros(len(asked_Q), dtype=bool)
    for q in np.flatnonzero(asked_Q).tolist() if router.predictor is not None else ():
        prompt = None if prompts is None or not prompts.length_Q[q] else prompts.list_of(q)
        saved_QN[q], worth_Q[q], sources = router.foretold(prompt, requests.labels_of(q) if labels else None)
        known_Q[q] = bool(sources)
    return Foretold(saved_QN=saved_QN, worth_Q=worth_Q, known_Q=known_Q)


def observed_of(router: Router, requests: Requests, first: Trace) -> Observed:
    """What the router sees of the tokens of `first`."""
    shape = (len(requests.ids), router.num_nodes)
    saved_QN, seen_Q = np.zeros(shape), np.zeros(shape[0])
    for tokens in token_batches(first, mixed=False):
        request_T = requests.request_E[tokens.request_T]
        for layer, saved_EN in zip(router.layers, router.saved_MEN, strict=True):
            saved_XN = np.append(saved_EN.astype(np.float64), np.zeros((1, router.num_nodes)), axis=0)  # -1 is the last
            ids_TK = tokens.ids_TK(layer)
            saved_TN = saved_XN[ids_TK].sum(axis=1)
            for node in range(shape[1]):
                saved_QN[:, node] += np.bincount(request_T, saved_TN[:, node], shape[0])
            seen_Q += np.bincount(request_T, (ids_TK >= 0).sum(axis=1), shape[0])
    saved_QN *= router.top_k * router.counts_scale / np.maximum(seen_Q, 1.0)[:, None]
    tokens_Q = seen_Q / (router.top_k * len(router.layers))
    return Observed(saved_QN=saved_QN - saved_QN.mean(axis=1, keepdims=True), tokens_Q=tokens_Q)


def extra_of_requests(foretold: Foretold, observed: Observed | None = None) -> Floats:
    """What each home sends more than the best as the router sees each request, float64 [Q, N]; alike: nothing is known.

    As `Router.assign` says of one request.
    """
    saved_QN = np.where(foretold.known_Q[:, None], foretold.saved_QN, 0.0)
    if observed is not None:
        tokens_Q1, worth_Q1 = observed.tokens_Q[:, None], foretold.worth_Q[:, None]
        blended_QN = weighed(foretold.saved_QN, worth_Q1, observed.saved_QN, tokens_Q1)
        saved_QN = np.where(tokens_Q1 > 0, blended_QN, saved_QN)
    return np.asarray(saved_QN.max(axis=1, keepdims=True) - saved_QN)


def route_requests(
    router: Router, extra_QN: Floats, tokens_Q: npt.NDArray[np.int64], seed: int, *, order: int = 0
) -> npt.NDArray[np.int32]:
    """Home of every request, int32 [Q]; -1 for those without tokens.

    extra_QN  what is foretold of each, by `extra_of_requests`
    tokens_Q  all tokens of each request: what its node then has to carry

    Requests come in a random order that depends on the seed and the number of the order alone; the load of a node is
    the tokens of the requests that it was given before, and prices follow the requests that came.
    """
    home_Q = np.full(len(tokens_Q), -1, dtype=np.int32)
    load_N, recent = np.zeros(router.num_nodes), router.recent()
    salt = [seed, 0xA221, order] if order else [seed, 0xA221]
    order_Q = np.random.default_rng(np.random.SeedSequence(salt)).permutation(len(home_Q))
    for q in order_Q[tokens_Q[order_Q] > 0]:
        home_Q[q] = router.choose(extra_QN[q], load_N, recent)
        load_N[home_Q[q]] += tokens_Q[q]
    return home_Q
