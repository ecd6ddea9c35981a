"""Prompts and labels of planted kinds, a predictor that has learned them, and a router with it."""

from __future__ import annotations

from typing import Any

import numpy as np

from placement.grouping.fit_predictor import Fitted, fit_predictor
from placement.grouping.prices import Prices
from placement.grouping.router import Router
from placement.traces.prompts import TokenLists

NODES, KINDS = 3, 3


def texts(seed: int, requests: int = 60) -> tuple[TokenLists, TokenLists, np.ndarray, np.ndarray]:
    """Prompts and answers of three kinds, each with words of its own among common ones, and what they save."""
    rng = np.random.default_rng(seed)
    kind_Q = np.arange(requests) % KINDS
    lists = []
    for low in (0, 1):
        parts = [
            np.concatenate([rng.integers(0, 20, 15), 100 * (kind + 1) + rng.integers(0, 30, 10)]) for kind in kind_Q
        ]
        lists.append(TokenLists.of(np.concatenate(parts).astype(np.int32), np.full(requests, 25 + 0 * low)))
    saved_QN = np.where(kind_Q[:, None] == np.arange(NODES), 0.4, -0.2) + rng.normal(0, 0.02, (requests, NODES))
    return *lists, saved_QN, kind_Q


def learned(seed: int = 0) -> tuple[Fitted, TokenLists, np.ndarray]:
    prompts, answers, saved_QN, kind_Q = texts(seed)
    tokens_Q = np.where(np.arange(len(kind_Q)) < 45, 50, 0)
    labels = [{"domain": f"kind {kind}"} for kind in kind_Q]
    fitted = fit_predictor(saved_QN, tokens_Q, prompts, answers, labels, seed=seed)
    assert fitted is not None
    return fitted.with_worth(0.5), prompts, kind_Q


def make_router(**more: Any) -> Router:
    fitted, _, _ = learned()
    saved_MEN = np.random.default_rng(5).uniform(0, 1, (2, 6, NODES)).astype(np.float32)
    prices = Prices(score_SN=fitted.score_SN.astype(np.float32), request_tokens=50.0, horizon=10.0, tolerance=1e9)
    given: dict[str, Any] = {"prices": prices, "predictor": fitted.predictor, "prefix_sends": 2.0} | more
    return Router(num_layers=4, top_k=2, layers=(1, 3), saved_MEN=saved_MEN, band=0.01, slack_tokens=9.0, **given)
