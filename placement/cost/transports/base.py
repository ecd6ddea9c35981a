"""What a transport is: which copies of a token it sends, and what they cost."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.cost.traffic import Traffic
from placement.errors import ClusterError

Floats = npt.NDArray[np.float64]
PER_NODE, PER_RANK, PER_ASSIGNMENT = 0, 1, 2  # places in `Traffic` and of `leaving_L3`


class Transport:
    """A transport sends one copy of a token for each unit that serves the token; a subclass says for which.

    Attributes:
        name: Name, as users give it.
        engines: Who sends so, in a few words.
        copies: One for each distinct node (PER_NODE), distinct rank (PER_RANK) or assignment (PER_ASSIGNMENT).
        everywhere: True if every token goes everywhere, so that a placement changes nothing but balance.
        flattened: Name of the transport that sends the same where every rank is a node of its own: a search with
            redundant experts looks at such a cluster too; None: there is none.
    """

    name: str
    engines: str
    copies: int
    everywhere: bool = False
    flattened: str | None = None

    @property
    def distinct(self) -> bool:
        """True if a unit gets one copy of a token, however many of the token's experts the unit serves."""
        return self.copies != PER_ASSIGNMENT

    def fare_HX(self, cluster: Cluster) -> Floats:
        """Cost of a copy from home node h to node or rank x, float64 [N, N] or [N, G]; 1 is `inter_gbps`."""
        return cluster.node_cost_NN() if self.copies == PER_NODE else cluster.rank_cost_NG()

    def fault(self, cluster: Cluster) -> str | None:
        """Which part of the cluster's topology this transport would leave out, and how to mend that; None: none."""
        if self.copies == PER_RANK and cluster.run_time_balance != "none":
            return (
                f"run_time_balance={cluster.run_time_balance!r} lets any GPU of a node serve what comes to the node: "
                f"copies for ranks (transport={self.name!r}) are not known; use --transport node"
            )
        priced = cluster.priced_within_nodes() if self.copies == PER_NODE else None
        if priced is None:
            return None
        return (
            f"topology.rank_cost from rank {priced[0]} to {priced[1]} is {priced[2]:g}; both are of one node, where "
            f"transport={self.name!r} sends nothing: use --transport rank, or let rank_hosts say which ranks share a "
            "node"
        )

    def check(self, cluster: Cluster) -> None:
        """Raise ClusterError where `fault` finds one."""
        if told := self.fault(cluster):
            raise ClusterError(told)

    def links_NN(self, traffic: Traffic, fare_HX: Floats, num_tokens: float) -> Floats:
        """Copies per token from home node to node, each weighed by its fare; plain counts where all links are alike."""
        paid_HX = traffic[self.copies] * fare_HX
        return np.asarray(paid_HX.reshape(len(paid_HX), len(paid_HX), -1).sum(axis=2) / max(num_tokens, 1))

    def into_G(self, traffic: Traffic, fare_HX: Floats, num_tokens: float) -> Floats:
        """Copies per token into each GPU, float64 [G]; what comes to a node comes to its GPUs evenly, rail by rail."""
        if self.copies != PER_NODE:
            return np.asarray((traffic[self.copies] * fare_HX).sum(axis=0) / max(num_tokens, 1))
        into_N = self.links_NN(traffic, fare_HX, num_tokens).sum(axis=0)
        gpus = traffic.rank_HG.shape[1] // len(into_N)
        return np.repeat(into_N / gpus, gpus)

    def cost(self, traffic: Traffic, fare_HX: Floats, num_tokens: float) -> float:
        """Copies per token, each weighed by its fare."""
        return float(self.links_NN(traffic, fare_HX, num_tokens).sum())

    def between_nodes_L(self, leaving_L3: Floats, num_nodes: int) -> Floats:
        """Copies of a token that leave the home node, float64 [L].

        Args:
            leaving_L3: Copies for distinct remote nodes, for distinct remote ranks, and remote assignments, float64
                [L, 3].
        """
        return leaving_L3[:, self.copies]
