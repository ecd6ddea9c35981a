"""What a copy of a token costs on its way between nodes and ranks of unequal distance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from placement.errors import ClusterError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Blocks of `nodes` consecutive nodes (a rack, a pod), `gbps` a GPU from one block to another."""

    name: str
    nodes: int
    gbps: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Topology:
    """How the links between nodes differ; empty: they are all alike.

    levels     racks, pods and so on, in any order; the slowest level between two nodes counts
    node_gbps  network bandwidth of one GPU of each node, where it is not the cluster's `inter_gbps`
    rank_cost  [G][G] cost of one copy of a token from rank to rank, instead of the two above
    """

    levels: tuple[Level, ...] = ()
    node_gbps: tuple[float, ...] = ()
    rank_cost: tuple[tuple[float, ...], ...] = ()

    def check(self, num_nodes: int, gpus_per_node: int) -> None:
        """Raise ClusterError unless levels nest, and bandwidths and costs are numbers that can be used."""
        inner = 1
        for level in sorted(self.levels, key=lambda one: one.nodes):
            if level.nodes < 1 or num_nodes % level.nodes or level.nodes % inner:
                raise ClusterError(
                    f"topology.levels: {level.name!r} has blocks of {level.nodes} nodes; they must divide the "
                    f"{num_nodes} nodes evenly and hold whole blocks of {inner} of the level below"
                )
            inner = level.nodes
            _check_positive(f"topology.levels: gbps of {level.name!r}", (level.gbps,))
        if self.node_gbps and len(self.node_gbps) != num_nodes:
            raise ClusterError(
                f"topology.node_gbps has {len(self.node_gbps)} values for {num_nodes} nodes; give one a node, or none"
            )
        _check_positive("topology.node_gbps", self.node_gbps)
        if self.rank_cost:
            self._check_costs(num_nodes * gpus_per_node)

    def _check_costs(self, num_ranks: int) -> None:
        if self.levels or self.node_gbps:
            raise ClusterError("topology.rank_cost already says what levels and node_gbps say; give one or the other")
        widths = set(map(len, self.rank_cost))
        if len(self.rank_cost) != num_ranks or widths != {num_ranks}:
            raise ClusterError(
                f"topology.rank_cost has {len(self.rank_cost)} rows of {sorted(widths)} costs; "
                f"{num_ranks} rows of {num_ranks} are needed, one a rank"
            )
        costs = np.asarray(self.rank_cost, dtype=np.float64)
        bad = np.argwhere(~((costs >= 0) & (costs < 1e9)))
        if len(bad):
            row, column = map(int, bad[0])
            raise ClusterError(
                f"topology.rank_cost from rank {row} to {column} is {costs[row, column]}; numbers from 0 to below 1e9 "
                f"are allowed"
            )

    def reordered(self, rank_G: npt.NDArray[np.int64]) -> Topology:
        """The same links where the ranks stand in another order: rank_G[i] is the number here of rank i there."""
        if not self.rank_cost:
            return self
        cost_GG = np.asarray(self.rank_cost, dtype=np.float64)[np.ix_(rank_G, rank_G)]
        return replace(self, rank_cost=tuple(map(tuple, cost_GG.tolist())))

    def priced_within(self, gpus_per_node: int) -> tuple[int, int, float] | None:
        """(rank, rank, cost) of the first link between two ranks of a node that `rank_cost` prices; None: of none."""
        for row, costs in enumerate(self.rank_cost):
            first = row - row % gpus_per_node
            for column in range(first, first + gpus_per_node):
                if costs[column] and column != row:
                    return row, column, costs[column]
        return None

    def node_cost_NN(self, num_nodes: int, gpus_per_node: int, inter_gbps: float) -> Floats:
        """Cost of one copy from node h (row) to node d, float64 [N, N], 0 on the diagonal; 1 is `inter_gbps`.

        The slowest of both nodes' links and of the levels between them counts. Of `rank_cost` the mean over GPUs of
        the same position in both nodes is taken (DeepEP sends along such rails).
        """
        if self.rank_cost:
            shape = (num_nodes, gpus_per_node, num_nodes, gpus_per_node)
            cost_NN = np.einsum("higi->hg", np.asarray(self.rank_cost, dtype=np.float64).reshape(shape))
            cost_NN = cost_NN / gpus_per_node
        else:
            gbps_N = np.asarray(self.node_gbps or [inter_gbps] * num_nodes, dtype=np.float64)
            gbps_NN = np.minimum(gbps_N[:, None], gbps_N)
            for level in self.levels:
                block_N = np.arange(num_nodes) // level.nodes
                gbps_NN = np.where(block_N[:, None] == block_N, gbps_NN, np.minimum(gbps_NN, level.gbps))
            cost_NN = inter_gbps / gbps_NN
        np.fill_diagonal(cost_NN, 0.0)
        return np.asarray(cost_NN)

    def rank_cost_NG(self, num_nodes: int, gpus_per_node: int, inter_gbps: float) -> Floats:
        """Mean cost of one copy from the ranks of node h (row) to rank g, float64 [N, G].

        0 within a node, unless `rank_cost` prices its links.
        """
        if self.rank_cost:
            cost = np.asarray(self.rank_cost, dtype=np.float64)
            return np.asarray(cost.reshape(num_nodes, gpus_per_node, -1).mean(axis=1))
        return np.repeat(self.node_cost_NN(num_nodes, gpus_per_node, inter_gbps), gpus_per_node, axis=1)


EVEN = Topology()


def _check_positive(name: str, values: Sequence[float]) -> None:
    for value in values:
        if not 0 < value < 1e18:
            raise ClusterError(f"{name} has {str(value)[:24]}; positive numbers below 1e18 are allowed")
