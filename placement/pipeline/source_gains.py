"""What each thing that a router may know of a request is worth: measured on held-out requests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from placement.grouping.assign import assign_homes
from placement.grouping.fit_predictor import Fitted, fit_predictor
from placement.grouping.held_out import (
    Foretold,
    Observed,
    extra_of_requests,
    foretold_of,
    observed_of,
    route_requests,
)
from placement.grouping.home_costs import HomeCosts
from placement.grouping.requests import Requests
from placement.grouping.router import Router
from placement.grouping.token_savings import TokenSavings
from placement.traces.cut import first_tokens
from placement.traces.prompts import TokenLists, tokens_of
from placement.traces.trace import Trace

EARLY_TOKENS = 32
ORDERS = 8  # in which the requests may come: figures of routing are means over these

Homes = npt.NDArray[np.int32]
CostOf = Callable[[Trace], HomeCosts]


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceGain:
    """Homes of held-out requests by what is known of them, measured on the rest of each; `grouped` together, `routed`.

    sends    per token and layer
    balance  most tokens of a node over the mean
    """

    name: str
    grouped_sends: float
    grouped_balance: float
    routed_sends: float
    routed_balance: float


def learn(
    requests: Requests,
    prompts: TokenLists,
    train: Trace,
    costs: HomeCosts,
    cost_of: CostOf,
    savings_of: Callable[[Trace], TokenSavings],
    seed: int,
) -> Fitted | None:
    """The predictor from the training requests, of which `costs` are; None where too few have prompts or labels."""
    labels = [requests.labels_of(q) for q in range(len(requests.ids))]
    known = (costs.tokens_Q > 0) & ((prompts.length_Q > 0) | np.array([bool(one) for one in labels]))
    if not known.any():
        return None
    answers, saved_QN = requests.lists(tokens_of(train, prefill=False)), saved_of(costs)
    tokens = savings_of(train) if prompts.length_Q.any() else None
    fitted = fit_predictor(saved_QN, costs.tokens_Q, prompts, answers, labels, seed=seed, tokens=tokens)
    if fitted is None:
        return None
    early = cost_of(first_tokens(train, EARLY_TOKENS))
    wrong_QN = (saved_of(early) - saved_QN)[known]
    weight_Q = costs.tokens_Q[known] / costs.tokens_Q[known].mean()
    noise = float((weight_Q[:, None] * wrong_QN**2).mean()) * float(early.tokens_Q[known].mean())
    return fitted.with_worth(noise)


def saved_of(costs: HomeCosts) -> npt.NDArray[np.float64]:
    """What requests save per token and layer at each home, beside the mean of all homes, float64 [Q, N]."""
    each_QN = costs.cost_QN / (np.maximum(costs.tokens_Q, 1)[:, None] * len(costs.cost_LQN))
    return np.asarray(each_QN.mean(axis=1, keepdims=True) - each_QN)


def measure_sources(
    router: Router,
    requests: Requests,
    prompts: TokenLists,
    held_out: Trace,
    first: Trace,
    rest: HomeCosts,
    *,
    tolerance: float,
    seed: int,
) -> tuple[SourceGain, ...]:
    """Homes from the labels, the prompt, both, a few tokens more, and `first`, with what `rest` of them sends then.

    What no held-out request has is left out. Requests grouped together share the nodes by all their tokens.
    """
    layers = len(rest.cost_LQN)
    tokens_Q = rest.tokens_Q
    asked_Q = tokens_Q > 0
    labels = any(requests.labels_of(q) for q in np.flatnonzero(asked_Q).tolist())
    prompted = bool(prompts.length_Q[asked_Q].any())
    foretell = partial(foretold_of, router, requests, asked_Q)
    nothing = foretell()
    before = {"labels": foretell(labels=True)} if labels else {}
    before |= {"prompt": foretell(prompts)} if prompted else {}
    best = {name: before[name] for name in list(before)[-1:]}
    before |= {"prompt, labels": foretell(prompts, labels=True)} if labels and prompted else {}
    told: dict[str, tuple[Foretold, Observed | None]] = {name: (one, None) for name, one in before.items()}
    for name, part in ((f"first {EARLY_TOKENS} tokens", first_tokens(held_out, EARLY_TOKENS)), ("first part", first)):
        observed = observed_of(router, requests, part)
        told[name] = (nothing, observed)
        told |= {f"{also}, {name}": (one, observed) for also, one in best.items()}
    found = []
    random = float(rest.cost_QN.mean(axis=1).sum()) / max(int(tokens_Q.sum()) * layers, 1)
    found.append(SourceGain(name="nothing", **dict.fromkeys(FIGURES, 1.0) | dict.fromkeys(FIGURES[::2], random)))
    for name, known in told.items():
        extra_QN = extra_of_requests(*known)
        grouped_Q = assign_homes(extra_QN * tokens_Q[:, None], tokens_Q, tolerance=tolerance).home_Q
        orders = [route_requests(router, extra_QN, tokens_Q, seed, order=order) for order in range(ORDERS)]
        routed = np.mean([_figures(rest, home_Q) for home_Q in orders], axis=0).tolist()
        figures = (*_figures(rest, grouped_Q), *routed)
        found.append(SourceGain(name=name, **dict(zip(FIGURES, figures, strict=True))))
    return tuple(found)


def session_tokens(router: Router, extra_QN: npt.NDArray[np.float64], tokens_Q: npt.NDArray[np.int64]) -> float | None:
    """Cached tokens that weigh as much as the best home saves beside the mean one; None where a prefix has no price.

    extra_QN  what is foretold of requests of `tokens_Q` tokens, by `extra_of_requests`
    """
    if router.prices is None or not router.prefix_sends or not tokens_Q.any():
        return None
    gain = float(tokens_Q @ extra_QN.mean(axis=1)) / int(tokens_Q.sum())
    return gain * router.prices.request_tokens * router.num_layers / router.prefix_sends


FIGURES = ("grouped_sends", "grouped_balance", "routed_sends", "routed_balance")


def _figures(rest: HomeCosts, home_Q: Homes) -> tuple[float, float]:
    mine = np.flatnonzero((rest.tokens_Q > 0) & (home_Q >= 0))
    total = max(int(rest.tokens_Q[mine].sum()) * len(rest.cost_LQN), 1)
    load_N = np.bincount(home_Q[mine], rest.tokens_Q[mine], rest.cost_LQN.shape[2])
    return float(rest.cost_QN[mine, home_Q[mine]].sum()) / total, float(load_N.max() / max(load_N.mean(), 1e-9))
