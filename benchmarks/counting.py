"""Counting expert ids on one core, beside numpy.bincount on the same ids in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from machine import describe_machine

from placement.workload.counting import count_load

SEED = 0
IDS = 64_000_000
REPEATS = 7


def best_seconds(task: Callable[[], object]) -> float:
    task()  # compile, and warm the cache
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        task()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    rng = np.random.default_rng(SEED)
    print(f"# Counting expert ids\n\n{describe_machine()}, seed {SEED}, best of {REPEATS}\n")
    print("| experts | ids | ours, million ids/s | numpy.bincount, million ids/s | ratio |\n|---|---|---|---|---|")
    for num_experts, dtype in ((32, np.uint8), (256, np.uint8), (384, np.uint16)):
        skew = rng.dirichlet(np.full(num_experts, 2.0))
        ids = rng.choice(num_experts, size=IDS, p=skew).astype(dtype)
        load = np.zeros(num_experts, dtype=np.int64)
        ours = best_seconds(lambda ids=ids, load=load: count_load(ids, load))
        numpy = best_seconds(lambda ids=ids, size=num_experts: np.bincount(ids, minlength=size))
        load[:] = 0
        count_load(ids, load)
        if not np.array_equal(load, np.bincount(ids, minlength=num_experts)):
            raise SystemExit("the counts differ: this benchmark is void")
        rates = (IDS / ours / 1e6, IDS / numpy / 1e6)
        print(f"| {num_experts} | {IDS:,} {ids.dtype} | {rates[0]:.0f} | {rates[1]:.0f} | {numpy / ours:.1f} |")


if __name__ == "__main__":
    main()
