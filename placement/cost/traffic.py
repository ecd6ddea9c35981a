"""Where one layer's tokens are sent: copies by home node and destination."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Traffic(NamedTuple):
    """Expected copies of tokens whose home is node h; kernels add to it. Those that stay on the node are counted too.

    node_HN        float64 [N, N], copies for distinct nodes
    rank_HG        float64 [N, G], copies for distinct ranks
    assignment_HG  float64 [N, G], assignments
    """

    node_HN: Floats
    rank_HG: Floats
    assignment_HG: Floats

    @staticmethod
    def start(num_nodes: int, num_ranks: int) -> Traffic:
        return Traffic(
            np.zeros((num_nodes, num_nodes)), np.zeros((num_nodes, num_ranks)), np.zeros((num_nodes, num_ranks))
        )
