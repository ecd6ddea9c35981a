"""Kernels of the synthetic router (numba, cached on disk, without the GIL): Gumbel noise and top-k selection."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
import numpy.typing as npt

_BITS = 12
# quantiles of the Gumbel distribution: the table is small enough for the first-level cache, and one 64-bit hash gives
# five indexes; logits are continuous, so that 4,096 noise levels are as good as infinitely many
GUMBEL = (-np.log(-np.log((np.arange(1 << _BITS) + 0.5) / (1 << _BITS)))).astype(np.float32)


@nb.njit(inline="always")  # type: ignore[untyped-decorator]
def _mix(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@nb.njit(cache=True, nogil=True)
def add_noise(logits_TE: npt.NDArray[np.float32], key: np.uint64, first: int, table: npt.NDArray[np.float32]) -> None:
    """Add Gumbel noise that depends on nothing but `key`, the token's number `first + t` and the expert."""
    num_experts = logits_TE.shape[1]
    golden = np.uint64(0x9E3779B97F4A7C15)
    for t in range(logits_TE.shape[0]):
        state = _mix(key + np.uint64(first + t) * golden)
        for e in range(0, num_experts, 5):
            state += golden
            bits = _mix(state)
            for i in range(e, min(e + 5, num_experts)):
                logits_TE[t, i] += table[bits & np.uint64(4095)]
                bits >>= np.uint64(12)


@nb.njit(cache=True, nogil=True)
def keep_best_groups(
    logits_TE: npt.NDArray[np.float32], num_groups: int, per_token: int, offset: np.float32
) -> None:
    """Set the logits of all but the best `per_token` groups to -inf; a group's score is the sum of its two best
    affinities sigmoid(logit - offset), as DeepSeek-V3 routes."""
    size = logits_TE.shape[1] // num_groups
    score_G = np.empty(num_groups, dtype=np.float32)
    for t in range(logits_TE.shape[0]):
        for g in range(num_groups):
            first = second = -np.inf
            for e in range(g * size, (g + 1) * size):
                value = logits_TE[t, e]
                if value > first:
                    first, second = value, first
                elif value > second:
                    second = value
            score_G[g] = 1 / (1 + np.exp(offset - first)) + 1 / (1 + np.exp(offset - second))
        for _ in range(num_groups - per_token):
            worst = np.argmin(score_G)
            score_G[worst] = np.inf
            logits_TE[t, worst * size : (worst + 1) * size] = -np.inf


@nb.njit(cache=True, nogil=True)
def choose_top(
    logits_TE: npt.NDArray[np.float32], ids_TK: npt.NDArray[Any], best_TK: npt.NDArray[np.float32]
) -> None:
    """The K best experts of every token and their logits, the best first; of equals the lower id."""
    top_k = ids_TK.shape[1]
    best_K = np.empty(top_k, dtype=np.float32)
    id_K = np.empty(top_k, dtype=np.int64)
    for t in range(logits_TE.shape[0]):
        best_K[:] = -np.inf
        id_K[:] = -1
        for e in range(logits_TE.shape[1]):
            value = logits_TE[t, e]
            if value <= best_K[top_k - 1]:
                continue
            k = top_k - 1
            while k > 0 and best_K[k - 1] < value:
                best_K[k], id_K[k] = best_K[k - 1], id_K[k - 1]
                k -= 1
            best_K[k], id_K[k] = value, e
        for k in range(top_k):
            ids_TK[t, k] = id_K[k]
            best_TK[t, k] = best_K[k]
