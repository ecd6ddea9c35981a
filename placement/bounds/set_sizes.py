"""Top-k sets by how many experts they have: the places that a short set lacks are -1, at its end."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]


def set_sizes(sets_UK: npt.NDArray[Any]) -> Ints:
    """How many experts each set has, int64 [U]."""
    num_sets, top_k = sets_UK.shape
    if not (sets_UK[:, -1] < 0).any():  # what a set lacks is at its end, and most traces lack nothing
        return np.full(num_sets, top_k, dtype=np.int64)
    return np.asarray((sets_UK >= 0).sum(axis=1), dtype=np.int64)


def by_size(sets_UK: npt.NDArray[Any]) -> list[tuple[Ints, npt.NDArray[Any]]]:
    """The sets of each size, the largest first: rows, int64 [R], and their ids, [R, size].

    Sets of no expert are left out: they cost nothing.
    """
    size_U = set_sizes(sets_UK)
    groups = []
    for size in np.unique(size_U)[::-1].tolist():
        if size:
            rows = np.flatnonzero(size_U == size)
            groups.append((rows, sets_UK[rows, :size]))
    return groups
