"""Whole requests moved and swapped between nodes under a cap on tokens (numba)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.support.kernel import kernel

Floats = npt.NDArray[np.float64]


@kernel
def repair(cost_QN: Floats, tokens_Q: npt.NDArray[np.int64], home_Q: npt.NDArray[np.int64], cap: int) -> bool:
    """Move requests off nodes beyond the cap, each time the one that costs least per token that it takes away; and swap
    where nothing fits. False if that does not end within the cap."""
    num_requests, num_nodes = cost_QN.shape
    load_N = np.zeros(num_nodes, dtype=np.int64)
    for q in range(num_requests):
        load_N[home_Q[q]] += tokens_Q[q]
    for _ in range(4 * num_requests + 4):
        full = int(np.argmax(load_N))
        over = load_N[full] - cap
        if over <= 0:
            return True
        best, best_q, best_r, best_n = np.inf, -1, -1, -1
        for q in range(num_requests):
            if home_Q[q] != full:
                continue
            for n in range(num_nodes):
                if n == full:
                    continue
                price = cost_QN[q, n] - cost_QN[q, full]
                if load_N[n] + tokens_Q[q] <= cap:
                    each = price / min(tokens_Q[q], over)
                    if each < best:
                        best, best_q, best_r, best_n = each, q, -1, n
        if best_q < 0:
            for q in range(num_requests):
                if home_Q[q] != full:
                    continue
                for r in range(num_requests):
                    n = home_Q[r]
                    less = tokens_Q[q] - tokens_Q[r]
                    if n == full or less <= 0 or load_N[n] + less > max(cap, load_N[full] - 1):
                        continue
                    price = cost_QN[q, n] - cost_QN[q, full] + cost_QN[r, full] - cost_QN[r, n]
                    each = price / min(less, over)
                    if load_N[n] + less <= cap and each < best:
                        best, best_q, best_r, best_n = each, q, r, n
        if best_q < 0:
            return False
        load_N[full] -= tokens_Q[best_q]
        load_N[best_n] += tokens_Q[best_q]
        home_Q[best_q] = best_n
        if best_r >= 0:
            load_N[best_n] -= tokens_Q[best_r]
            load_N[full] += tokens_Q[best_r]
            home_Q[best_r] = full
    return False


@kernel
def improve(
    cost_QN: Floats, tokens_Q: npt.NDArray[np.int64], home_Q: npt.NDArray[np.int64], cap: int, swaps: bool
) -> None:
    """Move single requests, and swap pairs of them, while that costs less and keeps the cap."""
    num_requests, num_nodes = cost_QN.shape
    load_N = np.zeros(num_nodes, dtype=np.int64)
    for q in range(num_requests):
        load_N[home_Q[q]] += tokens_Q[q]
    better = True
    while better:
        better = False
        for q in range(num_requests):
            for n in range(num_nodes):
                a = home_Q[q]
                if load_N[n] + tokens_Q[q] <= cap and n != a and cost_QN[q, n] < cost_QN[q, a] - 1e-9:
                    load_N[a] -= tokens_Q[q]
                    load_N[n] += tokens_Q[q]
                    home_Q[q] = n
                    better = True
        if not swaps:
            continue
        for q in range(num_requests):
            for r in range(q):
                a, b = home_Q[q], home_Q[r]
                shift = tokens_Q[q] - tokens_Q[r]
                if a == b or load_N[b] + shift > cap or load_N[a] - shift > cap:
                    continue
                if cost_QN[q, b] + cost_QN[r, a] < cost_QN[q, a] + cost_QN[r, b] - 1e-9:
                    load_N[a] -= shift
                    load_N[b] += shift
                    home_Q[q], home_Q[r] = b, a
                    better = True
