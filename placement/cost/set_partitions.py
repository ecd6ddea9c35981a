"""The part of the Lagrangian bound that sees top-k sets: each alone, with the best of all its partitions over nodes.

A set of K experts that a map splits into blocks, one a node, costs blocks + theta . pairs, theta the multipliers of its
pairs of experts; pairs has a 1 where both are in one block. The cost of a partition is a sum over its blocks, so only
the 2^K subsets are priced, and partitions are sums of table entries. There are 15 partitions of 4 experts, 203 of 6 and
4140 of 8: where that is too much, all pairs of a set share one multiplier, and the number of pairs is all that counts.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Masks = npt.NDArray[np.uint16]  # unsigned: indices that need no check for being negative

ADAM_FIRST, ADAM_SECOND, ADAM_TINY = 0.9, 0.99, 1e-12  # usual values, but a shorter memory for the squares
NO_CHANCE = 1e-5  # beside the 1 of the best partition: left out of the gradient
MOST_EXPONENT = 300.0  # two factors of opposite sign still multiply to a number


class Adam(NamedTuple):
    """Steps of Adam (Kingma and Ba, 2015): running means of the gradient and of its square."""

    first: Floats
    second: Floats

    @classmethod
    def like(cls, variable: Floats) -> Adam:
        return cls(np.zeros_like(variable), np.zeros_like(variable))

    def ascend(self, variable: Floats, gradient: Floats, stride: float) -> Floats:
        """The variable after a step uphill; `stride` includes `adam_bias`."""
        self.first[...] += (1 - ADAM_FIRST) * (gradient - self.first)
        self.second[...] += (1 - ADAM_SECOND) * (gradient * gradient - self.second)
        moved: Floats = variable + stride * self.first / (np.sqrt(self.second) + ADAM_TINY)
        return moved


def adam_bias(step: int) -> float:
    """What makes up for means that started at 0, at step number `step` (from 0)."""
    return float(np.sqrt(1 - ADAM_SECOND ** (step + 1)) / (1 - ADAM_FIRST ** (step + 1)))


class SetSide(NamedTuple):
    """Sets, and the partitions that they have in common.

    pair_UC   int64 [U, C], u * E + v of each of the C = K(K-1)/2 pairs u < v of a set
    weight_U  float64 [U], what a block costs
    parts_PJ  uint16 [P, J], the blocks of every partition as bit masks, 0 where there are fewer than J
    """

    pair_UC: Ints
    weight_U: Floats
    parts_PJ: Masks
    top_k: int


def set_partitions(top_k: int, most_blocks: int, largest: int) -> Masks:
    """All partitions of K elements into at most `most_blocks` blocks of at most `largest`, uint16 [P, J] bit masks."""
    found: list[list[int]] = [[]]
    for element in range(top_k):
        bit = 1 << element
        longer = []
        for blocks in found:
            for j, block in enumerate(blocks):
                if block.bit_count() < largest:
                    longer.append([*blocks[:j], block | bit, *blocks[j + 1 :]])
            if len(blocks) < most_blocks:
                longer.append([*blocks, bit])
        found = longer
    parts_PJ = np.zeros((len(found), min(top_k, most_blocks)), dtype=np.uint16)
    for row, blocks in zip(parts_PJ, found, strict=True):
        row[: len(blocks)] = blocks
    return parts_PJ


@nb.njit(cache=True, nogil=True)
def add_rewards(side: SetSide, theta_UC: Floats, reward_V: Floats) -> None:
    """Add weight * theta at the position of every pair: what the shared matrix earns for a pair on one node."""
    for u in range(side.pair_UC.shape[0]):
        for c in range(side.pair_UC.shape[1]):
            reward_V[side.pair_UC[u, c]] += side.weight_U[u] * theta_UC[u, c]


@nb.njit(cache=True, nogil=True)
def ascend_sets(
    side: SetSide,
    theta_UC: Floats,
    next_UC: Floats,
    adam: Adam,
    same_V: Floats,
    smoothing: float,
    stride: float,
) -> tuple[float, float]:
    """The exact value of the sets at theta, and a step uphill on the smoothed one, into `next_UC`.

    same_V     float64 [E * E], the shared same-node matrix that the pairs of a set should agree with
    smoothing  temperature of the softmax over partitions, in blocks

    Returns the sum of weight * least cost, and the sum of the magnitudes that were added up, for the rounding error.
    """
    top_k = side.top_k
    num_parts, most_blocks = side.parts_PJ.shape
    subsets = 1 << top_k
    pair_KK = np.zeros((top_k, top_k))
    size_S, lowest_S = np.zeros(subsets, dtype=np.int64), np.zeros(subsets, dtype=np.int64)
    for s in range(1, subsets):
        while not s >> lowest_S[s] & 1:
            lowest_S[s] += 1
        size_S[s] = size_S[s & (s - 1)] + 1
    cost_S, lift_S, seen_S = np.zeros(subsets), np.ones(subsets), np.zeros(subsets)
    total, magnitude = 0.0, 0.0
    for u in range(side.pair_UC.shape[0]):
        c = 0
        size_of_theta = 0.0
        for i in range(top_k):
            for j in range(i + 1, top_k):
                pair_KK[i, j] = theta_UC[u, c]
                size_of_theta += abs(theta_UC[u, c])
                c += 1
        for s in range(1, subsets):
            rest = s & (s - 1)
            cost = cost_S[rest] if rest else 1.0
            for j in range(lowest_S[s] + 1, top_k):
                if rest >> j & 1:
                    cost += pair_KK[lowest_S[s], j]
            cost_S[s] = cost
        least = np.inf
        for p in range(num_parts):
            cost = 0.0
            for j in range(most_blocks):
                cost += cost_S[side.parts_PJ[p, j]]
            least = min(least, cost)
        total += side.weight_U[u] * least
        magnitude += side.weight_U[u] * (size_of_theta + top_k)
        for s in range(1, subsets):
            # the least cost, shared evenly by the elements, keeps the product over a partition at most 1
            exponent = (least * size_S[s] / top_k - cost_S[s]) / smoothing
            lift_S[s] = np.exp(min(max(exponent, -MOST_EXPONENT), MOST_EXPONENT))
            seen_S[s] = 0.0
        norm = 1e-300
        for p in range(num_parts):
            chance = 1.0
            for j in range(most_blocks):
                chance *= lift_S[side.parts_PJ[p, j]]
            if chance < NO_CHANCE:
                continue
            norm += chance
            for j in range(most_blocks):
                seen_S[side.parts_PJ[p, j]] += chance
        pair_KK[:] = 0.0
        for s in range(1, subsets):
            if size_S[s] > 1 and seen_S[s] > 0.0:
                for i in range(lowest_S[s], top_k):
                    if s >> i & 1:
                        for j in range(i + 1, top_k):
                            if s >> j & 1:
                                pair_KK[i, j] += seen_S[s]
        c = 0
        for i in range(top_k):
            for j in range(i + 1, top_k):
                gradient = pair_KK[i, j] / norm - same_V[side.pair_UC[u, c]]
                adam.first[u, c] += (1 - ADAM_FIRST) * (gradient - adam.first[u, c])
                adam.second[u, c] += (1 - ADAM_SECOND) * (gradient * gradient - adam.second[u, c])
                next_UC[u, c] = theta_UC[u, c] + stride * adam.first[u, c] / (np.sqrt(adam.second[u, c]) + ADAM_TINY)
                c += 1
    return total, magnitude


def even_sets(
    side: SetSide, blocks_of: dict[int, int], theta_U: Floats, same_V: Floats, smoothing: float
) -> tuple[float, float, Floats]:
    """The same with one multiplier for all pairs of a set; returns the gradient instead of taking the step.

    blocks_of  the fewest blocks that come with each number of pairs (see `fewest_nodes`)
    """
    pairs_P = np.array(list(blocks_of), dtype=np.float64)
    cost_UP = np.array(list(blocks_of.values()), dtype=np.float64) + theta_U[:, None] * pairs_P
    least_U = cost_UP.min(axis=1)
    chance_UP = np.exp((least_U[:, None] - cost_UP) / smoothing)
    mean_U = (chance_UP @ pairs_P) / chance_UP.sum(axis=1)
    magnitude = float(side.weight_U @ (np.abs(theta_U) * side.pair_UC.shape[1] + side.top_k))
    return float(side.weight_U @ least_U), magnitude, mean_U - same_V[side.pair_UC].sum(axis=1)
