"""Kernels of the synthetic router (numba, cached on disk, without the GIL).

Sums run in a fixed order, so that a seed gives the same trace whatever the number of threads and the BLAS library.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.hash64 import GOLDEN, mix_word
from placement.support.kernel import inner_kernel, kernel

# quantiles of the Gumbel distribution: the table fits the first-level cache and one 64-bit hash gives five 12-bit
# indexes; the rest of a logit is continuous, so that 4,096 levels of noise do not show
GUMBEL = (-np.log(-np.log((np.arange(4096) + 0.5) / 4096))).astype(np.float32)


@kernel
def route(
    latent_TR: npt.NDArray[np.float32],
    weight_RE: npt.NDArray[np.float32],
    popularity_E: npt.NDArray[np.float32],
    key: np.uint64,
    first_token: int,
    table: npt.NDArray[np.float32],
    num_groups: int,
    groups_per_token: int,
    ids_TK: npt.NDArray[Any],
    logits_TK: npt.NDArray[np.float32],
) -> None:
    """The top-k sets of tokens in one layer, the best expert first, into `ids_TK`; their logits into `logits_TK`.

    The noise of a logit depends on nothing but `key` (of seed and layer), the token's number `first_token + t` and the
    expert. num_groups = 1 is no group limit.
    """
    num_experts = popularity_E.shape[0]
    logits_E = np.empty(num_experts, dtype=np.float32)
    score_G = np.empty(num_groups, dtype=np.float32)
    # where affinities sigmoid(logit - offset) are neither all 0 nor all 1
    offset = np.float32(np.log(num_experts / ids_TK.shape[1]))
    for t in range(latent_TR.shape[0]):
        logits_E[:] = popularity_E
        for r in range(latent_TR.shape[1]):
            u = latent_TR[t, r]
            for e in range(num_experts):
                logits_E[e] += u * weight_RE[r, e]
        state = mix_word(key + np.uint64(first_token + t) * GOLDEN)
        for e in range(0, num_experts, 5):
            state += GOLDEN
            bits = mix_word(state)
            for i in range(e, min(e + 5, num_experts)):
                logits_E[i] += table[bits & np.uint64(4095)]
                bits >>= np.uint64(12)
        if num_groups > 1:
            _keep_best_groups(logits_E, score_G, groups_per_token, offset)
        _choose_top(logits_E, ids_TK[t], logits_TK[t])


@kernel
def smooth(noise_TR: npt.NDArray[np.float32], memory: float, state_R: npt.NDArray[np.float32]) -> None:
    """Turn fresh unit normals into an AR(1) process of unit variance, in place, going on from `state_R`."""
    fresh = np.float32(np.sqrt(1 - memory * memory))
    for t in range(noise_TR.shape[0]):
        for r in range(noise_TR.shape[1]):
            state_R[r] = np.float32(memory) * state_R[r] + fresh * noise_TR[t, r]
            noise_TR[t, r] = state_R[r]


@inner_kernel
def _keep_best_groups(
    logits_E: npt.NDArray[np.float32], score_G: npt.NDArray[np.float32], kept: int, offset: np.float32
) -> None:
    """Take all but the best `kept` groups out. A group scores the sum of its two best affinities, as in DeepSeek-V3."""
    num_groups = score_G.shape[0]
    size = logits_E.shape[0] // num_groups
    for g in range(num_groups):
        first = np.float32(-np.inf)
        second = np.float32(-np.inf)
        for e in range(g * size, (g + 1) * size):
            value = logits_E[e]
            if value > first:
                first, second = value, first
            elif value > second:
                second = value
        score_G[g] = 1 / (1 + np.exp(offset - first)) + 1 / (1 + np.exp(offset - second))
    for _ in range(num_groups - kept):
        worst = np.argmin(score_G)
        score_G[worst] = np.inf
        logits_E[worst * size : (worst + 1) * size] = -np.inf


@inner_kernel
def _choose_top(logits_E: npt.NDArray[np.float32], ids_K: npt.NDArray[Any], best_K: npt.NDArray[np.float32]) -> None:
    """Insertion into a sorted list of K; of equals the lower id."""
    last = ids_K.shape[0] - 1
    best_K[:] = -np.inf
    for e in range(logits_E.shape[0]):
        value = logits_E[e]
        if value <= best_K[last]:
            continue
        k = last
        while k > 0 and best_K[k - 1] < value:
            best_K[k] = best_K[k - 1]
            ids_K[k] = ids_K[k - 1]
            k -= 1
        best_K[k] = value
        ids_K[k] = e
