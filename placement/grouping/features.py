"""What is known of a request before it runs, as sparse numbers: hashed n-grams of its prompt's tokens, and labels."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import InputError
from placement.grouping.gram_kernels import hashed_grams
from placement.support.hash64 import GOLDEN, mix

GRAM_WEIGHTS = (1.0, 0.7, 0.7)  # of tokens, of pairs and of triples that follow one another
LABEL_WEIGHT = 0.5

Floats = npt.NDArray[np.float64]
Columns = npt.NDArray[np.int64]


def gram_counts(prompt: npt.NDArray[Any], buckets: int) -> Iterator[tuple[Columns, npt.NDArray[np.int64], float]]:
    """For each length of n-grams: the buckets that the prompt fills, how often, and what the length weighs."""
    words_T = prompt.astype(np.int64).astype(np.uint64)
    for size, weight in enumerate(GRAM_WEIGHTS, 1):
        grams = max(len(words_T) - size + 1, 0)
        hash_T = np.full(grams, np.uint64(size))
        for first in range(size if grams else 0):
            hash_T = mix(hash_T * GOLDEN + words_T[first : first + grams])
        yield *np.unique((hash_T % np.uint64(buckets)).astype(np.int64), return_counts=True), weight


def token_buckets(token_T: npt.NDArray[Any], buckets: int) -> Columns:
    """The bucket that each token fills by itself, int64 [T]."""
    words_T = token_T.astype(np.int64).astype(np.uint64)
    return (mix(np.uint64(1) * GOLDEN + words_T) % np.uint64(buckets)).astype(np.int64)


def prompt_features(prompt: npt.NDArray[Any], idf_F: npt.NDArray[Any]) -> tuple[Columns, Floats]:
    """Buckets and values: log of 1 + count, times how rare it is; each length of n-grams has the norm of its weight."""
    return hashed_grams(prompt.astype(np.int64, copy=False), idf_F, GRAM_WEIGHTS)


def label_features(labels: Mapping[str, str], buckets: int) -> tuple[Columns, Floats]:
    """One bucket for each label, such as the domain or the tenant, and its value."""
    names = [f"{key}={value}".encode(errors="surrogatepass") for key, value in sorted(labels.items())]
    words = [int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") for name in names]
    return np.array([word % buckets for word in words], dtype=np.int64), np.full(len(words), LABEL_WEIGHT)


def checked_prompt(prompt: object) -> npt.NDArray[np.int64]:
    """The ids of a prompt's tokens, int64 [T]. Raises InputError."""
    try:
        tokens = np.asarray(prompt)
    except (ValueError, TypeError):  # rows of different lengths
        tokens = np.empty((0, 0))
    whole = tokens.dtype.kind in "iu" or not tokens.size
    if tokens.ndim != 1 or not whole or (tokens.size and (tokens.min() < 0 or tokens.max() >= 2**31)):
        raise InputError("the prompt must be a list of the ids of its tokens: whole numbers from 0 to 2^31 - 1")
    return tokens.astype(np.int64, copy=False)
