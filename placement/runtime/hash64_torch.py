"""64-bit words in torch, which has signed words only: hashes and remainders as in `placement.support.hash64`."""

from __future__ import annotations

import torch
from torch import Tensor

_ALL = (1 << 64) - 1


def signed(word: int) -> int:
    """The int64 with the bits of an unsigned word."""
    word &= _ALL
    return word - (1 << 64) if word >> 63 else word


GOLDEN = signed(0x9E3779B97F4A7C15)


def mix(x: Tensor) -> Tensor:
    """splitmix64's finaliser, as `placement.support.hash64.mix`."""
    x = (x ^ _shift(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * signed(0x94D049BB133111EB)
    return x ^ _shift(x, 31)


def mix_int(x: int) -> int:
    """The same of one word, signed, without torch: a tensor would make a GPU wait for the host."""
    word = signed(x) & _ALL
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & _ALL
    word = (word ^ word >> 27) * 0x94D049BB133111EB & _ALL
    return signed(word ^ word >> 31)


def remainder(x: Tensor, by: Tensor) -> Tensor:
    """Of unsigned words by small positive numbers."""
    return (_shift(x, 1) % by * 2 + (x & 1)) % by


def bit_count(x: Tensor, bits: int) -> Tensor:
    """Set bits among the lowest `bits`."""
    return sum((x >> bit & 1 for bit in range(bits)), torch.zeros_like(x))


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)
