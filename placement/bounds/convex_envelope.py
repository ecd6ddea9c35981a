"""Convex lower envelopes: what a mean can be at least, when only the mean of another quantity is known (Jensen)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def fewest_nodes(top_k: int, num_nodes: int, slots_per_node: int) -> dict[int, int]:
    """For every possible number of same-node pairs of a token's experts, the fewest nodes that it can touch."""
    least: dict[int, int] = {}

    def split(left: int, largest: int, blocks: int, pairs: int) -> None:
        if left == 0:
            least[pairs] = min(least.get(pairs, blocks), blocks)
        elif blocks < num_nodes:
            for size in range(min(left, largest), 0, -1):
                split(left - size, size, blocks + 1, pairs + size * (size - 1) // 2)

    split(top_k, slots_per_node, 0, 0)
    return least


def lower_lines(values: dict[int, int]) -> tuple[Floats, Floats]:
    """Lines `a - b * x`, b >= 0, whose maximum is the largest convex and nowhere rising function below the points."""
    hull: list[tuple[int, int]] = []
    for x, y in sorted(values.items()):
        while len(hull) > 1 and (y - hull[-2][1]) * (hull[-1][0] - hull[-2][0]) <= (hull[-1][1] - hull[-2][1]) * (
            x - hull[-2][0]
        ):
            hull.pop()
        hull.append((x, y))
    lines = [(float(min(values.values())), 0.0)]
    for (x, y), (next_x, next_y) in pairwise(hull):
        slope = (y - next_y) / (next_x - x)
        if slope > 0:
            lines.append((y + slope * x, slope))
    return np.array([a for a, _ in lines]), np.array([b for _, b in lines])


def least_at(values: dict[int, int], most: float) -> float:
    """The least possible mean of y, if the points are `values` and the mean of x is at most `most`."""
    return least_of_all([(1.0, values)], most)


def least_of_all(groups: Sequence[tuple[float, dict[int, int]]], most: float) -> float:
    """As `least_at` over groups of these shares, each with points of its own; `most` is of all together.

    A price on x lets every group choose its own point. Any price gives a bound, the best is the slope of some envelope.
    """
    slopes = np.unique(np.concatenate([lower_lines(values)[1] for _, values in groups]))
    return max(
        sum(share * min(y + slope * x for x, y in values.items()) for share, values in groups) - slope * most
        for slope in map(float, slopes)
    )
