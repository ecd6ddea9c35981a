"""Pseudo-random 64-bit words that are the same everywhere: splitmix64 (Steele, Lea and Flood, OOPSLA 2014)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from placement.support.kernel import inlined_kernel

GOLDEN = np.uint64(0x9E3779B97F4A7C15)

Words = TypeVar("Words", np.uint64, npt.NDArray[np.uint64])


def mix(x: Words) -> Words:
    """The finaliser: a bijection on words that looks random. Takes one word or an array of them."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


# numba's types do not see through the TypeVar
mix_word: Callable[[np.uint64], np.uint64] = inlined_kernel(mix)


def mixed_order(size: int) -> npt.NDArray[np.int64]:
    """A permutation of so many things that looks random; always the same one."""
    return np.argsort(mix(np.arange(size, dtype=np.uint64)), kind="stable")
