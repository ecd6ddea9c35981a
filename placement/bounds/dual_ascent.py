"""Steps of Adam (Kingma and Ba, 2015), uphill."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

ADAM_FIRST, ADAM_SECOND, ADAM_TINY = 0.9, 0.99, 1e-12  # usual values, but a shorter memory for the squares


class Adam(NamedTuple):
    """Running means of the gradient and of its square."""

    first: Floats
    second: Floats

    @classmethod
    def like(cls, variable: Floats) -> Adam:
        return cls(np.zeros_like(variable), np.zeros_like(variable))

    def ascend(self, variable: Floats, gradient: Floats, stride: float) -> Floats:
        """The variable after a step uphill; `stride` includes `adam_bias`."""
        self.first[...] += (1 - ADAM_FIRST) * (gradient - self.first)
        self.second[...] += (1 - ADAM_SECOND) * (gradient * gradient - self.second)
        moved: Floats = variable + stride * self.first / (np.sqrt(self.second) + ADAM_TINY)
        return moved


def adam_bias(step: int) -> float:
    """What makes up for means that started at 0, at step number `step` (from 0)."""
    return float(np.sqrt(1 - ADAM_SECOND ** (step + 1)) / (1 - ADAM_FIRST ** (step + 1)))
