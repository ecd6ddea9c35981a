"""Mean and quantiles of any number of figures that come piece by piece, in bounded memory."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

SHARES = (0.01, 0.25, 0.5, 0.75, 0.99)  # of the steps, whose figures are kept
_SHIFT = np.int64(40)  # bits of a float64 that are left out: 2^-12 of a figure, 0.024%


class OverSteps(NamedTuple):
    """Attributes:
    mean: Mean over steps.
    p99: The least figure that 99% of the steps do not exceed, to within 0.03%.
    quantiles: The same for each of SHARES.
    """

    mean: float
    p99: float
    quantiles: tuple[float, ...]


class Spread:
    """Figures of 0 or more: their sum is exact, and how often each occurs is kept to 0.024% of its size."""

    def __init__(self) -> None:
        self._number, self._sum = 0, 0.0
        self._bins = np.zeros(0, dtype=np.int64)
        self._count = np.zeros(0, dtype=np.int64)

    def add(self, value_S: npt.NDArray[np.float64]) -> None:
        """Further figures, float64 [S]."""
        self._number += len(value_S)
        self._sum += float(value_S.sum())
        # floats of one sign are in the order of their bits
        bins, count = np.unique(value_S.astype(np.float64).view(np.int64) >> _SHIFT, return_counts=True)
        self._bins, where = np.unique(np.concatenate([self._bins, bins]), return_inverse=True)
        whole = np.bincount(where, weights=np.concatenate([self._count, count]), minlength=len(self._bins))
        self._count = whole.astype(np.int64)

    def over_steps(self) -> OverSteps:
        """Of the figures so far, of which there is one at least."""
        wanted_S = [-(-round(100 * share) * self._number // 100) for share in SHARES]
        middle_S = (self._bins[np.searchsorted(np.cumsum(self._count), wanted_S)] << _SHIFT) + (
            np.int64(1) << (_SHIFT - 1)
        )
        quantiles = tuple(middle_S.view(np.float64).tolist())
        return OverSteps(self._sum / self._number, quantiles[-1], quantiles)
