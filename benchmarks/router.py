"""Decisions of the online router a second, on one core: from counts, and from prompts with prices of load.

python benchmarks/router.py
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
from machine import describe_machine

from placement.grouping import Router
from placement.grouping.predictor import Predictor, buckets_for
from placement.grouping.prices import MOST_SCORES, Prices

REQUESTS, RUNS = 2_000, 5
CASES = ((58, 256, 8, 4), (58, 256, 8, 32))
PROMPTS = (200, 2_000)  # tokens


def main() -> None:
    print(f"# Router\n\n{describe_machine()}; one thread, seed 0, best of {RUNS} runs of {REQUESTS} requests.\n")
    print("| layers x experts | nodes | told | requests/s |\n|---|---|---|---|")
    rng = np.random.default_rng(0)
    for layers, experts, top_k, nodes in CASES:
        counts = rng.multinomial(200 * top_k, rng.dirichlet(np.ones(experts)), size=(64, layers)).astype(np.int32)
        load = rng.integers(0, 1000, nodes).astype(np.float64)
        for looked in (8, layers):
            router = Router(
                num_layers=layers,
                top_k=top_k,
                layers=tuple(range(0, layers, layers // looked))[:looked],
                saved_MEN=rng.random((looked, experts, nodes), dtype=np.float32),
                band=0.01,
                slack_tokens=500.0,
            )
            speed = _speed(partial(_by_counts, router, counts, load))
            print(f"| {layers} x {experts} | {nodes} | counts of {looked} layers | {speed:,.0f} |", flush=True)
        told = _told(rng, layers, experts, top_k, nodes)
        for tokens in PROMPTS:
            prompts = rng.integers(0, 200_000, (64, tokens))
            speed = _speed(partial(_by_prompt, told, prompts, load))
            print(f"| {layers} x {experts} | {nodes} | a prompt of {tokens:,} tokens | {speed:,.0f} |", flush=True)


def _told(rng: np.random.Generator, layers: int, experts: int, top_k: int, nodes: int) -> Router:
    """A router with tables of full size: random ones, so that nothing is rare."""
    buckets = buckets_for(nodes)
    predictor = Predictor(
        idf_F=rng.random(buckets).astype(np.float16),
        weight_NF=rng.normal(0, 0.01, (nodes, buckets)).astype(np.float16),
        mean_N=np.zeros(nodes),
        worth_tokens=10.0,
        least_worth_tokens=1.0,
    )
    scores = rng.normal(0, 0.1, (MOST_SCORES, nodes)).astype(np.float32)
    return Router(
        num_layers=layers,
        top_k=top_k,
        layers=(0,),
        saved_MEN=np.zeros((1, experts, nodes), np.float32),
        band=0.01,
        slack_tokens=500.0,
        prices=Prices(score_SN=scores, request_tokens=500.0, horizon=3.0, tolerance=0.02, ahead_tokens=500.0),
        predictor=predictor,
    )


def _by_counts(router: Router, counts: np.ndarray, load: np.ndarray, number: int) -> None:
    router.assign(counts[number % len(counts)], load)


def _by_prompt(router: Router, prompts: np.ndarray, load: np.ndarray, number: int) -> None:
    router.assign(load=load, prompt=prompts[number % len(prompts)])


def _speed(ask: Callable[[int], object]) -> float:
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        for number in range(REQUESTS):
            ask(number)
        seconds.append(time.perf_counter() - start)
    return REQUESTS / min(seconds)


if __name__ == "__main__":
    main()
