"""A lower bound on the sends of any placement with redundant experts, by Lagrangian decomposition.

As `lagrangian_bound`, but what sets and the map have to agree on is how many nodes host each expert and each pair. A set
takes the cheapest of its splits over nodes (`host_splits`: as few nodes as possible, with any choice of replicas and
homes at random), and what the nodes can host is bounded by an eigenvalue (`host_matrix`). A set may leave hosts unused, so
its multipliers are >= 0.
"""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.cost.adam import Adam, adam_bias
from placement.cost.host_matrix import HostMatrix, HostPrices
from placement.cost.set_side import add_even_rewards, add_rewards, ascend_sets, even_sets, set_sides
from placement.cost.spectral_bound import ERROR_FACTOR

Floats = npt.NDArray[np.float64]

ITERATIONS = 400
FIRST_PAIR, FIRST_HOST = 0.3, 0.1  # multipliers; 1 is the price of a node
# first and last value, falling geometrically
STRIDE = (0.1, 0.002)
SOFT_SPLITS = (0.2, 0.002)  # in nodes
SOFT_EIGENVALUES = (0.1, 0.001)  # of their spread
PRICE_STRIDE, CORNER_STRIDE = 6.0, 0.1  # of STRIDE, in units of H's mean reward for a pair; the second of E times that


class HostMultipliers(NamedTuple):
    """Any values >= 0 give a valid bound; see `HostPrices` for the prices.

    theta_UF  float64 [H, K(K-1)/2 + K], of the pairs and the experts of the H heaviest sets, by falling weight
    even_UD   float64 [U - H, 2], of all pairs and all experts of each lighter set
    """

    theta_UF: Floats
    even_UD: Floats
    prices: HostPrices


def replica_bound(
    sets_UK: npt.NDArray[np.integer],
    weight_U: Floats,
    num_experts: int,
    num_nodes: int,
    slots_per_node: int,
    *,
    iterations: int = ITERATIONS,
    deadline: float | None = None,
) -> tuple[float, HostMultipliers]:
    """No map sends fewer copies of a token to remote nodes, in the mean over sets (weights sum to 1) and random homes.

    Also returns the multipliers that prove it. Holds for every replica choice and any number of copies. Deterministic without a deadline, which hurries the schedule.
    """
    slots = min(slots_per_node, num_experts)
    heavy, light = set_sides(sets_UK, weight_U, num_experts, num_nodes, slots, hosts=True)
    shared = HostMatrix(num_experts, num_nodes, slots)
    first_F = np.repeat([FIRST_PAIR, FIRST_HOST], light.size_D)
    theta_UF = np.tile(first_F, (len(heavy.cell_UF), 1))
    even_UD = np.tile([FIRST_PAIR, FIRST_HOST], (len(light.cell_UF), 1))
    prices = HostPrices.none(num_experts)
    theta_adam, even_adam, price_adams = Adam.like(theta_UF), Adam.like(even_UD), [Adam.like(price) for price in prices]
    unit = FIRST_PAIR * light.size_D[0] / max(num_experts * (num_experts - 1), 1)
    factors = (num_experts * CORNER_STRIDE, 1.0, 1.0, 1.0, 1.0)
    cells = num_experts**2
    best, kept, began = 0.0, HostMultipliers(theta_UF, even_UD, prices), time.monotonic()
    for step in range(iterations):
        progress = step / iterations
        if deadline is not None:
            now = time.monotonic()
            if now >= deadline:
                break
            progress = max(progress, (now - began) / (deadline - began))
        stride, soft_splits, soft_eigenvalues = (
            first * (last / first) ** progress for first, last in (STRIDE, SOFT_SPLITS, SOFT_EIGENVALUES)
        )
        stride *= adam_bias(step)
        reward_V = np.zeros(cells + num_experts)
        add_rewards(heavy, theta_UF, reward_V)
        add_even_rewards(light, even_UD, reward_V)
        half_EE = reward_V[:cells].reshape(num_experts, num_experts)
        earned, hosts, norm = shared.earn(half_EE + half_EE.T, reward_V[cells:], prices, soft_eigenvalues)
        shared_V = np.concatenate([hosts[1:, 1:].ravel(), hosts[0, 1:]])
        next_UF = np.empty_like(theta_UF)
        heavy_value, heavy_size = ascend_sets(heavy, theta_UF, next_UF, theta_adam, shared_V, soft_splits, stride)
        light_value, light_size, slope_UD = even_sets(light, even_UD, shared_V, soft_splits)
        terms = sets_UK.shape[0] * (1 + len(first_F))
        size = terms * (heavy_size + light_size) + (num_experts + 1) ** 2 * norm
        error = ERROR_FACTOR * float(np.finfo(np.float64).eps) * size
        value = heavy_value + light_value - earned - error
        if value > best:
            best, kept = value, HostMultipliers(theta_UF, even_UD, prices)
        theta_UF = next_UF
        even_UD = np.maximum(even_adam.ascend(even_UD, slope_UD, stride), 0.0)
        moved = (
            adam.ascend(price, slope, stride * unit * PRICE_STRIDE * factor)
            for adam, price, slope, factor in zip(price_adams, prices, shared.slopes(hosts), factors, strict=True)
        )
        prices = HostPrices(*moved).valid()
    return best, kept
