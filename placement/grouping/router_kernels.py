"""What the router computes for every request (numba): features of a prompt, and prices of loads."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.support.hash64 import GOLDEN, mix_word
from placement.support.kernel import kernel

SMALL = 64  # counts below have their logarithm in a table

Floats = npt.NDArray[np.float64]


@kernel
def hashed_grams(
    words_T: npt.NDArray[np.uint64], idf_F: npt.NDArray[np.floating], weights: tuple[float, ...]
) -> tuple[npt.NDArray[np.int64], Floats]:
    """Buckets and values of all n-grams, of 1 to len(weights) tokens; each length has the norm of its weight."""
    buckets = np.uint64(len(idf_F))
    mask = buckets - np.uint64(1)
    power_of_two = buckets & mask == 0  # as in files, where it spares a division for each n-gram
    log1p = np.log1p(np.arange(SMALL))
    places = 64
    while places < 2 * len(words_T):
        places *= 2
    bucket_P = np.full(places, -1, dtype=np.int64)  # a hash table that fits the nearest cache, of the buckets in use
    count_P = np.zeros(places, dtype=np.int64)
    used = np.empty(len(words_T), dtype=np.int64)
    columns = np.empty(len(weights) * len(words_T), dtype=np.int64)
    values = np.empty(len(columns))
    end = 0
    for size in range(1, len(weights) + 1):
        found = 0
        for first in range(len(words_T) - size + 1):
            word = np.uint64(size)
            for at in range(first, first + size):
                word = mix_word(word * GOLDEN + words_T[at])
            bucket = np.int64(word & mask if power_of_two else word % buckets)
            place = bucket & (places - 1)
            while bucket_P[place] != bucket and bucket_P[place] >= 0:
                place = (place + 1) & (places - 1)
            if bucket_P[place] < 0:
                bucket_P[place] = bucket
                used[found] = place
                found += 1
            count_P[place] += 1
        total = 0.0
        for at in range(found):
            place = used[at]
            bucket, count = bucket_P[place], count_P[place]
            value = (log1p[count] if count < SMALL else np.log1p(np.float64(count))) * idf_F[bucket]
            columns[end + at], values[end + at] = bucket, value
            bucket_P[place], count_P[place] = -1, 0
            total += value * value
        scale = weights[size - 1] / np.sqrt(total) if total > 0 else 0.0
        for at in range(end, end + found):
            values[at] *= scale
        end += found
    return columns[:end], values[:end]


@kernel
def weighed(columns: npt.NDArray[np.int64], values: Floats, weight_FN: npt.NDArray[np.float32]) -> Floats:
    """The sum of the rows of the columns, each times its value, float64 [N]."""
    sum_N = np.zeros(weight_FN.shape[1])
    for at in range(len(columns)):
        for n in range(len(sum_N)):
            sum_N[n] += values[at] * weight_FN[columns[at], n]
    return sum_N


@kernel
def scaled_to(near_SN: Floats, share_N: Floats, sweeps: int) -> Floats:
    """Sinkhorn's factors of the nodes, float64 [N]: with them each node gets its share of the rows."""
    num_rows, num_nodes = near_SN.shape
    scale_N = np.ones(num_nodes)
    got_N = np.empty(num_nodes)
    for _ in range(sweeps):
        got_N[:] = 0.0
        for s in range(num_rows):
            total = 0.0
            for n in range(num_nodes):
                total += near_SN[s, n] * scale_N[n]
            for n in range(num_nodes):
                got_N[n] += near_SN[s, n] / total
        most = 0.0
        for n in range(num_nodes):
            scale_N[n] *= share_N[n] / (got_N[n] * scale_N[n] / num_rows)
            most = max(most, scale_N[n])
        for n in range(num_nodes):
            scale_N[n] /= most
    return scale_N
