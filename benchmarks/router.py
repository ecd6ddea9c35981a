"""Decisions of the online router a second, on one core.

python benchmarks/router.py
"""

from __future__ import annotations

import time

import numpy as np
from machine import describe_machine

from placement.grouping import Router

REQUESTS = 2_000
CASES = ((58, 256, 8, 4), (58, 256, 8, 32))


def main() -> None:
    print(f"# Router\n\n{describe_machine()}; one thread, seed 0, best of 5 runs of {REQUESTS} requests.\n")
    print("| layers x experts | nodes | layers that it looks at | requests/s |\n|---|---|---|---|")
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
            seconds = min(_run(router, counts, load) for _ in range(5))
            print(f"| {layers} x {experts} | {nodes} | {looked} | {REQUESTS / seconds:,.0f} |")


def _run(router: Router, counts: np.ndarray, load: np.ndarray) -> float:
    start = time.perf_counter()
    for number in range(REQUESTS):
        router.assign(counts[number % len(counts)], load)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
