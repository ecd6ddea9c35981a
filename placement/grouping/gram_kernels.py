"""The n-grams of a prompt, hashed into buckets and counted (numba): what a home is foretold from."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.support.hash64 import GOLDEN, mix_word
from placement.support.kernel import inner_kernel, kernel

SMALL = 64  # counts below have their logarithm in a table
MOST = 65_535  # a bucket counts no further

Floats = npt.NDArray[np.float64]
Longs = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.uint16]


@inner_kernel
def count_grams(tokens_T: Longs, size: int, word_T: Words, count_F: Counts, used: Longs) -> int:
    """Count the n-grams of one size by bucket; `count_F` is all zeros, `word_T` and `used` have room for one more each.

    Returns:
        Buckets that were filled, which `used` then begins with, in the order of the prompt.
    """
    grams = len(tokens_T) - size + 1
    for first in range(grams):
        word_T[first] = np.uint64(size)
    for at in range(size):  # all n-grams a step further: several at once in the processor
        for first in range(grams):
            word_T[first] = mix_word(word_T[first] * GOLDEN + np.uint64(tokens_T[first + at]))
    whole = np.uint64(len(count_F))
    mask = whole - np.uint64(1)
    power_of_two = whole & mask == 0  # as in files, where it spares a division for each n-gram
    found = 0
    for first in range(grams):
        bucket = np.int64(word_T[first] & mask if power_of_two else word_T[first] % whole)
        count = count_F[bucket]
        used[found] = bucket
        found += count == 0  # no branch: nobody can foretell it
        count_F[bucket] = min(count + 1, MOST)
    return found


@kernel
def hashed_grams(tokens_T: Longs, idf_F: npt.NDArray[np.floating], weights: tuple[float, ...]) -> tuple[Longs, Floats]:
    """Buckets and values of all n-grams, of 1 to len(weights) tokens; each length has the norm of its weight."""
    log1p = np.log1p(np.arange(SMALL))
    count_F = np.zeros(len(idf_F), dtype=np.uint16)
    used = np.empty(len(tokens_T) + 1, dtype=np.int64)
    word_T = np.empty(len(tokens_T) + 1, dtype=np.uint64)
    columns = np.empty(len(weights) * len(tokens_T), dtype=np.int64)
    values = np.empty(len(columns))
    end = 0
    for size in range(1, len(weights) + 1):
        found = count_grams(tokens_T, size, word_T, count_F, used)
        total = 0.0
        for at in range(found):
            bucket = used[at]
            count = count_F[bucket]
            count_F[bucket] = 0
            value = (log1p[count] if count < SMALL else np.log1p(np.float64(count))) * idf_F[bucket]
            columns[end + at], values[end + at] = bucket, value
            total += value * value
        scale = weights[size - 1] / np.sqrt(total) if total > 0 else 0.0
        for at in range(end, end + found):
            values[at] *= scale
        end += found
    return columns[:end], values[:end]


@kernel
def weighed(columns: Longs, values: Floats, weight_FN: npt.NDArray[np.float32]) -> Floats:
    """The sum of the rows of the columns, each times its value, float64 [N]. Columns are 0 or more."""
    sum_N = np.zeros(weight_FN.shape[1])
    for at in range(len(columns)):
        row = np.uint64(columns[at])  # of a number that might be below 0 numba would look whether it is
        for n in range(len(sum_N)):
            sum_N[n] += values[at] * weight_FN[row, n]
    return sum_N
