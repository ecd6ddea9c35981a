"""The side of the sets where a set has hundreds of partitions: many sets at once, by a recursion over subsets.

All partitions of a set start with a block that holds its first element; what is left is partitioned further. So the
sum over all partitions of the products of their blocks' weights takes some 1,600 products for 8 experts on 4 nodes,
where there are 2,795 partitions, and so does the least sum of their blocks' costs. Its derivative by a block's weight
says how likely the block is. Every step is the same for all sets: the innermost loops run over `LANES` of them.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.bounds.dual_ascent import Adam, ascended
from placement.bounds.set_partitions import SetSide
from placement.support.kernel import kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LANES = 64
LEAST_SMOOTHING = 0.01  # with less smoothing, weights leave the range of floats
MOST_EXPONENT = 170.0  # largest exponent of a weight: a product of 4 weights is still a float


class Recursion(NamedTuple):
    """What is left of a set, by number; 0 is nothing, the last is the whole set.

    term_T3  int64 [T, 3]: this, less this block, is that; ascending
    size_S   int64 [2^K], elements of each subset
    numbers  how many there are
    """

    term_T3: Ints
    size_S: Ints
    numbers: int


@lru_cache(maxsize=8)
def recursion(elements: int, most_blocks: int, largest: int, *, home: bool) -> Recursion:
    """Of the partitions of so many elements into at most `most_blocks` blocks of at most `largest`.

    home: the last element is not counted in the size of a block.
    """
    counted = (1 << elements - home) - 1
    numbers: dict[tuple[int, int], int] = {(0, 0): 0}
    terms: list[tuple[int, int, int]] = []

    def visit(left: int, blocks: int) -> int | None:
        """The number of what is left, or None if that does not fit so many blocks."""
        if left == 0:
            return 0
        if blocks == 0:
            return None
        if (left, blocks) in numbers:
            return numbers[left, blocks]
        first = left & -left
        rest = left ^ first
        found = []
        company = rest
        while True:
            block = first | company
            if (block & counted).bit_count() <= largest:
                further = visit(left ^ block, blocks - 1)
                if further is not None:
                    found.append((block, further))
            if company == 0:
                break
            company = (company - 1) & rest
        if not found:
            return None
        numbers[left, blocks] = len(numbers)
        terms.extend((numbers[left, blocks], block, further) for block, further in found)
        return numbers[left, blocks]

    visit((1 << elements) - 1, most_blocks)
    size_S = np.array([s.bit_count() for s in range(1 << elements)], dtype=np.int64)
    return Recursion(np.array(sorted(terms), dtype=np.int64), size_S, len(numbers))


@kernel
def ascend_batches(
    side: SetSide, steps: Recursion, theta_UF: Floats, adam: Adam, shared_V: Floats, smoothing: float, stride: float
) -> tuple[float, float]:
    """A step uphill of all multipliers, in place; returns the sum of weight * least cost (1 for a block) before it, and
    the sum of the magnitudes that were added up, as `ascend_sets` does."""
    cell_UF, weight_U = side.cell_UF, side.weight_U
    ptr_S, feature_D = side.splits.ptr_S, side.splits.feature_D
    num_sets, num_features = cell_UF.shape
    subsets = ptr_S.shape[0] - 1
    terms, count = steps.term_T3, steps.numbers
    elements = steps.size_S[subsets - 1]
    theta_FL, seen_FL = np.zeros((num_features, LANES)), np.empty((num_features, LANES))
    cost_SL, chance_SL, seen_SL = np.ones((subsets, LANES)), np.zeros((subsets, LANES)), np.empty((subsets, LANES))
    least_RL, sum_RL, back_RL = np.empty((count, LANES)), np.empty((count, LANES)), np.empty((count, LANES))
    smoothing = max(smoothing, LEAST_SMOOTHING)
    total, magnitude = 0.0, 0.0
    for begin in range(0, num_sets, LANES):
        lanes = min(LANES, num_sets - begin)
        for lane in range(lanes):
            for f in range(num_features):
                theta_FL[f, lane] = theta_UF[begin + lane, f]
        for s in range(1, subsets):
            cost_SL[s] = 1.0
            for d in range(ptr_S[s], ptr_S[s + 1]):
                f = feature_D[d]
                for lane in range(LANES):
                    cost_SL[s, lane] += theta_FL[f, lane]
        least_RL[:] = np.inf
        least_RL[0] = 0.0
        for t in range(terms.shape[0]):
            r, s, further = terms[t, 0], terms[t, 1], terms[t, 2]
            for lane in range(LANES):
                cost = cost_SL[s, lane] + least_RL[further, lane]
                least_RL[r, lane] = cost if cost < least_RL[r, lane] else least_RL[r, lane]
        for lane in range(lanes):
            weight = weight_U[begin + lane]
            total += weight * least_RL[count - 1, lane]
            magnitude += weight * (np.abs(theta_FL[:, lane]).sum() + elements)
        for s in range(1, subsets):
            share = steps.size_S[s] / elements
            for lane in range(LANES):
                exponent = (least_RL[count - 1, lane] * share - cost_SL[s, lane]) / smoothing
                chance_SL[s, lane] = np.exp(min(exponent, MOST_EXPONENT)) if exponent > -MOST_EXPONENT else 0.0
        sum_RL[:] = 0.0
        sum_RL[0] = 1.0
        for t in range(terms.shape[0]):
            r, s, further = terms[t, 0], terms[t, 1], terms[t, 2]
            for lane in range(LANES):
                sum_RL[r, lane] += chance_SL[s, lane] * sum_RL[further, lane]
        back_RL[:] = 0.0
        for lane in range(LANES):
            whole = sum_RL[count - 1, lane]
            back_RL[count - 1, lane] = 1.0 / whole if whole > 1e-200 else 0.0
        seen_SL[:] = 0.0
        for t in range(terms.shape[0] - 1, -1, -1):
            r, s, further = terms[t, 0], terms[t, 1], terms[t, 2]
            for lane in range(LANES):
                seen_SL[s, lane] += back_RL[r, lane] * sum_RL[further, lane]
                back_RL[further, lane] += back_RL[r, lane] * chance_SL[s, lane]
        seen_FL[:] = 0.0
        for s in range(1, subsets):
            for lane in range(LANES):
                seen_SL[s, lane] *= chance_SL[s, lane]
            for d in range(ptr_S[s], ptr_S[s + 1]):
                f = feature_D[d]
                for lane in range(LANES):
                    seen_FL[f, lane] += seen_SL[s, lane]
        for lane in range(lanes):
            u = begin + lane
            if not back_RL[0, lane] > 0.0:
                continue  # the sum left the range of floats: these multipliers stay
            for f in range(num_features):
                gradient = seen_FL[f, lane] - shared_V[cell_UF[u, f]]
                theta_UF[u, f] = ascended(adam, u, f, theta_UF[u, f], gradient, stride)
    return total, magnitude
