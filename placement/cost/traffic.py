"""Where one layer's tokens are sent: copies by home node and destination."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class Traffic(NamedTuple):
    """Expected copies of tokens whose home is node h; kernels add to it. Those that stay there may be counted.

    node_HN        float64 [N, N], copies for distinct nodes
    rank_HG        float64 [N, G], copies for distinct ranks
    assignment_HG  float64 [N, G], assignments
    lacking_H      float64 [N], places that sets of fewer than K experts leave empty; `cost_layer` counts them
    """

    node_HN: Floats
    rank_HG: Floats
    assignment_HG: Floats
    lacking_H: Floats

    @staticmethod
    def start(num_nodes: int, num_ranks: int) -> Traffic:
        return Traffic(
            np.zeros((num_nodes, num_nodes)),
            np.zeros((num_nodes, num_ranks)),
            np.zeros((num_nodes, num_ranks)),
            np.zeros(num_nodes),
        )

    def leaving_3(self) -> Floats:
        """Copies for distinct remote nodes, for distinct remote ranks, and remote assignments, float64 [3]."""
        num_nodes, num_ranks = self.rank_HG.shape
        remote_NN = 1.0 - np.eye(num_nodes)
        remote_NG = np.repeat(remote_NN, num_ranks // num_nodes, axis=1)
        booked = (self.node_HN * remote_NN, self.rank_HG * remote_NG, self.assignment_HG * remote_NG)
        return np.array([copies.sum() for copies in booked])
