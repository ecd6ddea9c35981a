"""The prices of loads, which the router computes for every request (numba)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.support.kernel import kernel

Floats = npt.NDArray[np.float64]

LANES = 4  # sums that a processor takes forward at once


@kernel
def scaled_to(near_NS: Floats, num_columns: int, share_N: Floats, sweeps: int) -> Floats:
    """Sinkhorn's factors of the nodes, float64 [N]: with them each node gets its share of the first columns."""
    num_nodes = near_NS.shape[0]
    scale_N = np.ones(num_nodes)
    each_S = np.empty(num_columns)
    whole = num_columns - num_columns % LANES
    for _ in range(sweeps):
        each_S[:] = 0.0
        for n in range(num_nodes):
            scale = scale_N[n]
            for s in range(num_columns):
                each_S[s] += near_NS[n, s] * scale
        for s in range(num_columns):
            each_S[s] = 1.0 / each_S[s]
        most = 0.0
        for n in range(num_nodes):
            got_0 = got_1 = got_2 = got_3 = 0.0
            for s in range(0, whole, LANES):
                got_0 += near_NS[n, s] * each_S[s]
                got_1 += near_NS[n, s + 1] * each_S[s + 1]
                got_2 += near_NS[n, s + 2] * each_S[s + 2]
                got_3 += near_NS[n, s + 3] * each_S[s + 3]
            got = got_0 + got_1 + got_2 + got_3
            for s in range(whole, num_columns):
                got += near_NS[n, s] * each_S[s]
            scale_N[n] *= share_N[n] / (got * scale_N[n] / num_columns)
            most = max(most, scale_N[n])
        for n in range(num_nodes):
            scale_N[n] /= most
    return scale_N
