"""A lower bound on the sends of any placement with redundant experts, by Lagrangian decomposition.

As `lagrangian_bound`, but what sets and the map have to agree on is how many nodes host each expert and each pair. A
set takes the cheapest of its splits over nodes (`host_splits`: as few nodes as possible, with any choice of replicas
and homes at random), and what the nodes can host is bounded by an eigenvalue (`replica_relaxation`). A set may leave
hosts unused, so its multipliers are >= 0.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.bounds.dual_ascent import LONG, Adam, climb
from placement.bounds.replica_relaxation import HostMatrix, HostPrices
from placement.bounds.spectral_bound import ERROR_FACTOR
from placement.bounds.token_sets import TokenSets

Floats = npt.NDArray[np.float64]

ITERATIONS, FEW_ITERATIONS = 400, 150  # few where sets take turns
FIRST_PAIR, FIRST_HOST = 0.3, 0.1  # first multipliers; the price of a node is 1
PRICE_STRIDE, CORNER_STRIDE = 6.0, 0.1  # shares of STRIDE, in units of H's mean reward for a pair; the second times E


class HostMultipliers(NamedTuple):
    """Any values >= 0 give a valid bound; see `HostPrices` for the prices.

    thetas  of each kind of `TokenSets`, its sets by falling weight: float64 [U, K(K-1)/2 + K], of the pairs and the
            experts of each set with a random home; [U, K(K-1)/2 + 2K] where homes are given: pairs, experts, experts
            with the home
    """

    thetas: tuple[Floats, ...]
    prices: HostPrices


def replica_bound(
    sets_UK: npt.NDArray[np.integer],
    weight_U: Floats,
    num_experts: int,
    num_nodes: int,
    slots_per_node: int,
    *,
    home_U: npt.NDArray[np.integer] | None = None,
    iterations: int | None = None,
    deadline: float | None = None,
) -> tuple[float, HostMultipliers]:
    """No map sends fewer copies of a token to remote nodes, in the mean over sets and homes.

    Holds for every replica choice and any number of copies. Deterministic without a deadline.

    Args:
        sets_UK: top-k sets, [U, K]; short ones have -1 in their last places.
        weight_U: their shares of the tokens, float64 [U], which sum to 1.
        num_experts: logical experts.
        num_nodes: nodes of `slots_per_node` slots each.
        home_U: home node of each set, int [U], -1: uniformly random; None: all are random.
        iterations: steps; None: ITERATIONS, or fewer where sets take turns.
        deadline: `time.monotonic()` at which to stop; the schedule is hurried to end there.

    Returns:
        (the bound, the multipliers that prove it).
    """
    slots = min(slots_per_node, num_experts)
    sets = TokenSets(sets_UK, weight_U, home_U, num_experts, num_nodes, slots, hosts=True)
    shared = HostMatrix(num_experts, num_nodes, slots, homes=home_U is not None)
    size = shared.num_elements
    if iterations is None:
        iterations = FEW_ITERATIONS if sets.dear else ITERATIONS
    thetas = sets.first(lambda _: [FIRST_PAIR, FIRST_HOST])
    prices = HostPrices.none(size)
    adams = [Adam.like(price) for price in prices]
    unit = FIRST_PAIR * sets.top_k * (sets.top_k - 1) / 2 / max(num_experts * (num_experts - 1), 1)
    factors = (num_experts * CORNER_STRIDE, 1.0, 1.0, 1.0, 1.0)
    cells = size**2
    best, kept = 0.0, HostMultipliers(thetas, prices)
    for step in climb(iterations, deadline):
        stride, soft_splits = step.falling(LONG.stride), step.falling(LONG.soft_splits)
        reward_V = sets.rewards(thetas)
        half_EE = reward_V[:cells].reshape(size, size)
        earned, hosts, norm = shared.earn(
            half_EE + half_EE.T, reward_V[cells:], prices, step.falling(LONG.soft_eigenvalues)
        )
        shared_V = np.concatenate([hosts[1:, 1:].ravel(), hosts[0, 1:]])
        value, magnitude, moved = sets.judge_and_ascend(step, thetas, shared_V, soft_splits, stride)
        stride *= LONG.memory.bias(step.number)
        rounded = sets.terms * magnitude + (size + 1) ** 2 * norm
        value -= earned + ERROR_FACTOR * float(np.finfo(np.float64).eps) * rounded
        if value > best:
            best, kept = value, HostMultipliers(thetas, prices)
        thetas = moved
        further = (
            adam.ascend(price, slope, stride * unit * PRICE_STRIDE * factor)
            for adam, price, slope, factor in zip(adams, prices, shared.slopes(hosts), factors, strict=True)
        )
        prices = shared.valid(HostPrices(*further))
    return best, kept
