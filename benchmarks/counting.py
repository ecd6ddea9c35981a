"""Counting top-k sets on one core, beside numpy.bincount of their ids and of their pairs in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
from machine import describe_machine

from placement.workload.counting import set_counter

SEED = 0
TOKENS = 2_000_000
REPEATS = 5


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
    print(f"# Counting top-k sets\n\n{describe_machine()}, seed {SEED}, best of {REPEATS}\n")
    print("| experts | top-k | tokens | ours, million ids/s | bincount of ids | bincount of pairs |")
    print("|---|---|---|---|---|---|")
    for num_experts, top_k, dtype in ((32, 4, np.uint8), (256, 8, np.uint8), (384, 8, np.uint16)):
        skew = rng.dirichlet(np.full(num_experts, 2.0))
        ids_TK = rng.choice(num_experts, size=(TOKENS, top_k), p=skew).astype(dtype)
        side_T, row_T = np.zeros(TOKENS, dtype=np.int8), np.full(TOKENS, -1, dtype=np.int32)
        pairs_ZEE = np.zeros((1, num_experts, num_experts), dtype=np.uint32)
        profile_QLE = np.zeros((0, 1, num_experts), dtype=np.uint32)
        count_sets = set_counter(top_k)

        def ours(ids=ids_TK, side=side_T, row=row_T, pairs=pairs_ZEE, profile=profile_QLE, count=count_sets) -> None:
            count(ids, side, row, pairs, profile, 0)

        def of_pairs(ids=ids_TK, size=num_experts):
            pairs = (ids[:, k].astype(np.int64) * size + ids[:, j] for k in range(ids.shape[1]) for j in range(k))
            return sum(np.bincount(pair, minlength=size * size) for pair in pairs)

        seconds = best_seconds(ours), best_seconds(lambda ids=ids_TK: np.bincount(ids.ravel())), best_seconds(of_pairs)
        pairs_ZEE[:] = 0
        ours()
        if not np.array_equal(pairs_ZEE.ravel(), of_pairs()):
            raise SystemExit("the counts differ: this benchmark is void")
        rates = " | ".join(f"{ids_TK.size / one / 1e6:.0f}" for one in seconds)
        print(f"| {num_experts} | {top_k} | {TOKENS:,} {ids_TK.dtype} | {rates} |")


if __name__ == "__main__":
    main()
