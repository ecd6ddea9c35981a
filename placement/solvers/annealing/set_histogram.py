"""How often the others of an expert's sets are in which state, and what it costs to join them (numba).

The sums are of whole numbers, so they do not depend on the order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.support.kernel import inner_search_kernel

Counts = npt.NDArray[np.int32]


class Histogram(NamedTuple):
    """Tokens by state Z of the others of their sets.

    hist_EZ   int32 [E, Z], tokens of an expert's sets
    after_MZ  int32 [2^N, Z], N * sends of a token whose set's others are in state Z, if the expert is on the nodes M;
              or what these sends are above any number that M does not change
    """

    hist_EZ: Counts
    after_MZ: Counts


def no_tokens(num_experts: int, after_MZ: Counts) -> Histogram:
    """Nothing is counted yet."""
    return Histogram(np.zeros((num_experts, after_MZ.shape[1]), dtype=np.int32), after_MZ)


@inner_search_kernel
def change_of_sends(e: int, before: np.uint64, host: np.uint64, asked: Histogram) -> int:
    """Change of N * sends over all sets if expert e alone moved from the nodes `before` to the nodes `host`."""
    hist_EZ, after_MZ = asked.hist_EZ, asked.after_MZ
    total = np.int32(0)  # 32 bits: twice the lanes; N * sends of 2^24 tokens fit
    for z in range(hist_EZ.shape[1]):
        more = np.int32(after_MZ[host, z] - after_MZ[before, z])
        total = np.int32(total + np.int32(hist_EZ[e, z] * more))
    return int(total)
