"""The shared side of the Lagrangian bound with redundant experts: the most that hosts can earn, by an eigenvalue.

Node n hosts the experts z_n, 0 or 1 each, exactly m of them: one more never sends more. The matrix

    H = sum over nodes of (1, z_n)(1, z_n)'

counts: H_0u the nodes that host u, H_uv those that host both u and v. It is positive semidefinite, of trace N(1 + m),
and orthogonal to (-m, 1, .., 1). So for any M of that size, <M, H> is at most N(1 + m) times the largest eigenvalue of
M on the complement of that vector. What else is true of H is priced into M:

    H_00 = N,  H_uu = H_0u,  H_0u >= 1 (every expert is somewhere),  0 <= H_uv <= H_uu

Where homes are given, z_n has one more entry for each node's home, of which it hosts its own alone: the trace is
N(2 + m), H is orthogonal to the vector that is -1 at 0 and 1 at homes too, and between homes H is the unit matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh

from placement.bounds.same_node_relaxation import complement

Floats = npt.NDArray[np.float64]


class HostPrices(NamedTuple):
    """Any values are valid, but for the sign of those of inequalities. E: all elements, experts and homes.

    corner_1   float64 [1], of H_00 = N
    equal_E    float64 [E], of H_uu = H_0u
    some_E     float64 [E], >= 0, of H_0u >= 1
    above_EE   float64 [E, E], >= 0 and symmetric, of H_uv >= 0
    below_EE   float64 [E, E], >= 0, of H_uv <= H_uu; the diagonals of both do not count
    """

    corner_1: Floats
    equal_E: Floats
    some_E: Floats
    above_EE: Floats
    below_EE: Floats

    @classmethod
    def none(cls, num_experts: int) -> HostPrices:
        square = (num_experts, num_experts)
        return cls(np.zeros(1), np.zeros(num_experts), np.zeros(num_experts), np.zeros(square), np.zeros(square))


class HostMatrix:
    """What H can be, for E experts on N nodes that host m each; with `homes`, for E + N elements, the homes last."""

    def __init__(self, num_experts: int, num_nodes: int, slots_per_node: int, *, homes: bool = False) -> None:
        self.num_experts, self.num_nodes = num_experts, num_nodes
        self.num_elements = num_experts + homes * num_nodes
        self.trace = num_nodes * (1.0 + slots_per_node + homes)
        experts, home = np.zeros((2, self.num_elements + 1))
        experts[0], experts[1 : num_experts + 1] = -slots_per_node, 1.0
        home[0], home[num_experts + 1 :] = -1.0, 1.0
        if homes:  # take the first off the second: the basis needs them orthogonal
            home -= experts * (experts @ home) / (experts @ experts)
        self.basis = complement(np.stack([experts, home] if homes else [experts], axis=1))

    def valid(self, prices: HostPrices) -> HostPrices:
        """Those next to them that are valid. What is an equation for homes has a price of either sign."""
        first = self.num_experts
        some_E, above_EE = prices.some_E.copy(), 0.5 * (prices.above_EE + prices.above_EE.T)
        np.maximum(some_E[:first], 0.0, out=some_E[:first])
        np.maximum(above_EE[:first], 0.0, out=above_EE[:first])
        np.maximum(above_EE[first:, :first], 0.0, out=above_EE[first:, :first])
        below_EE = np.maximum(prices.below_EE, 0.0)
        np.fill_diagonal(below_EE, 0.0)
        return HostPrices(prices.corner_1, prices.equal_E, some_E, above_EE, below_EE)

    def earn(
        self, pair_EE: Floats, host_E: Floats, prices: HostPrices, smoothing: float
    ) -> tuple[float, Floats, float]:
        """The most of sum_{u<v} pair_uv H_uv + sum_u host_u H_0u.

        pair_EE    float64 [E, E], symmetric, 0 on the diagonal
        smoothing  temperature of the softmax over eigenvectors, of the spread of eigenvalues

        Returns that, an H that earns about as much, float64 [E + 1, E + 1], and the magnitude of all that was added up.
        """
        size = self.num_elements + 1
        whole = np.zeros((size, size))
        whole[1:, 1:] = 0.5 * (pair_EE + prices.above_EE - prices.below_EE - prices.below_EE.T)
        whole[np.arange(1, size), np.arange(1, size)] = prices.equal_E + prices.below_EE.sum(axis=1)
        whole[0, 1:] = whole[1:, 0] = 0.5 * (host_E + prices.some_E - prices.equal_E)
        whole[0, 0] = prices.corner_1[0]
        values, vectors = eigh(self.basis.T @ whole @ self.basis, check_finite=False, driver="evd")
        paid = self.num_nodes * float(prices.corner_1[0]) + float(prices.some_E.sum())
        width = max(smoothing * float(values[-1] - values[0]), 1e-12)
        chance = np.exp((values - values[-1]) / width)
        spanned = (self.basis @ vectors) * np.sqrt(chance * (self.trace / chance.sum()))
        norm = self.trace * float(np.linalg.norm(whole) + np.linalg.norm(prices.below_EE)) + abs(paid)
        return self.trace * float(values[-1]) - paid, spanned @ spanned.T, norm

    def slopes(self, hosts: Floats) -> HostPrices:
        """Which way prices make `earn` fall, where H is `hosts`: towards what it breaks."""
        inner_EE, nodes_E = hosts[1:, 1:], hosts[0, 1:]
        own_E = np.diag(inner_EE)
        return HostPrices(
            np.array([self.num_nodes - hosts[0, 0]]), nodes_E - own_E, 1 - nodes_E, -inner_EE, inner_EE - own_E[:, None]
        )
