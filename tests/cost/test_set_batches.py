"""The recursion over subsets does what going through all splits one by one does, for many sets at once."""

from __future__ import annotations

import numpy as np
import pytest

from placement.bounds.dual_ascent import Adam
from placement.bounds.set_batches import LANES, ascend_batches, recursion
from placement.bounds.set_partitions import ascend_sets, judge_sets
from placement.bounds.token_sets import SetMultipliers


@pytest.mark.parametrize(
    ("top_k", "nodes", "slots", "home"),
    [(4, 4, 3, False), (5, 3, 4, False), (6, 2, 3, False), (4, 3, 3, True), (5, 4, 2, True)],
)
def test_same_value_and_step_as_one_by_one(top_k: int, nodes: int, slots: int, home: bool) -> None:
    """More sets than lanes, and some left over; at a high and a low temperature."""
    rng = np.random.default_rng(top_k)
    experts, sets = nodes * slots, LANES + 3
    sets_UK = np.array([rng.choice(experts, top_k, replace=False) for _ in range(sets)])
    homes = experts + rng.integers(0, nodes, sets) if home else None
    kind = SetMultipliers(sets_UK, rng.random(sets), experts + nodes * home, nodes, slots, home_U=homes)
    side, steps = kind.side, recursion(top_k + home, nodes, slots, home=home)
    first_UF = rng.normal(0.2, 0.1, side.cell_UF.shape)
    shared_V = rng.random(kind.cells)
    for smoothing in (0.2, 0.02):
        one, many = first_UF.copy(), first_UF.copy()
        adams = Adam.like(one), Adam.like(many)
        for step in range(2):
            value, _ = ascend_sets(side, one, adams[0], shared_V, smoothing, 0.05)
            other, _ = ascend_batches(side, steps, many, adams[1], shared_V, smoothing, 0.05)
            free = side.weight_U.sum() if home else 0.0
            # one by one leaves the unlikely out of the step, and many at once are summed in single precision
            assert other - free == pytest.approx(value, rel=1e-4)
            assert step or other - free <= value
        assert many == pytest.approx(one, abs=2e-3)
        assert not np.array_equal(many, first_UF)


@pytest.mark.parametrize(
    ("top_k", "nodes", "slots", "home"),
    [
        (1, 2, 1, False),
        (3, 2, 3, False),
        (4, 4, 4, False),
        (4, 3, 2, False),
        (5, 5, 5, False),
        (6, 8, 6, False),
        (3, 3, 3, True),
    ],
)
def test_same_value_with_copies(top_k: int, nodes: int, slots: int, home: bool) -> None:
    """Blocks with more copies too, as `host_splits` has them; and a step lowers the price of what a set lacks."""
    rng = np.random.default_rng(top_k)
    experts, sets = nodes * slots, LANES + 3
    sets_UK = np.array([rng.choice(experts, top_k, replace=False) for _ in range(sets)])
    homes = experts + rng.integers(0, nodes, sets) if home else None
    kind = SetMultipliers(sets_UK, rng.random(sets), experts + nodes * home, nodes, slots, hosts=True, home_U=homes)
    side, steps = kind.side, recursion(top_k + home, nodes, slots, home=home, hosts=True)
    for scale in (0.03, 0.1, 0.3, 1.0):
        theta_UF = rng.exponential(scale, side.cell_UF.shape)
        value, _ = judge_sets(side, theta_UF)
        free = side.weight_U.sum() if home else 0.0
        adam, moved_UF, shared_V = Adam.like(theta_UF), theta_UF.copy(), np.full(kind.cells, 100.0)
        other, _ = ascend_batches(side, steps, moved_UF, adam, shared_V, 0.1, 0.0)
        assert np.array_equal(moved_UF, theta_UF)
        assert value * (1 - 1e-4) - 1e-4 <= other - free <= value
        ascend_batches(side, steps, moved_UF, adam, shared_V, 0.1, 0.01)
        assert (moved_UF < theta_UF).all() and (moved_UF >= 0).all()


def test_recursion_goes_over_every_partition_once() -> None:
    """Bell's and Stirling's numbers, by weights of 1."""
    for elements, blocks, largest, count in (
        (4, 4, 4, 15),
        (8, 4, 8, 2795),
        (8, 8, 8, 4140),
        (4, 2, 2, 3),
        (3, 1, 2, 0),
    ):
        steps = recursion(elements, blocks, largest, home=False)
        entries = len(steps.subset_Q)
        ways = np.zeros(steps.rows)
        ways[: entries + 1] = 1
        for row, one, other in steps.term_T3:
            ways[row] += ways[one] * ways[other]
        assert (ways[-1] if count else 0) == count
