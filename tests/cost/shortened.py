"""Top-k sets that lack some of their experts."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[Any]


def shortened(rng: np.random.Generator, ids_LTK: Ids, share: float) -> Ids:
    """The sets without that share of their experts, int64, -1 at their ends; no token is without any in all layers."""
    gone_LTK = rng.random(ids_LTK.shape) < share
    gone_LTK[0, gone_LTK.all(axis=(0, 2)), 0] = False
    order_LTK = np.argsort(gone_LTK, axis=2, kind="stable")
    return np.take_along_axis(np.where(gone_LTK, -1, ids_LTK.astype(np.int64)), order_LTK, axis=2)
