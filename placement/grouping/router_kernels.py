"""The prices of loads, which the router computes for every request (numba)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.support.kernel import kernel

Floats = npt.NDArray[np.float64]


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
