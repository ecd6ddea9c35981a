"""Homes of requests: never beyond the cap, never below the bound, optimal where that can be tried out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from placement.errors import OptionError
from placement.grouping.assign import GAP, assign_homes


def brute_force(cost_QN: np.ndarray, tokens_Q: np.ndarray, cap: int) -> float:
    best = np.inf
    for homes in product(range(cost_QN.shape[1]), repeat=len(tokens_Q)):
        load_N = np.bincount(homes, tokens_Q, cost_QN.shape[1])
        if load_N.max() <= cap:
            best = min(best, float(cost_QN[np.arange(len(homes)), list(homes)].sum()))
    return best


@settings(max_examples=60, deadline=None)
@example(seed=280, num_requests=7, num_nodes=3, tolerance=0.02)  # no packing in order finds what keeps the share
@given(
    seed=st.integers(0, 10_000),
    num_requests=st.integers(1, 7),
    num_nodes=st.integers(2, 3),
    tolerance=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_small_problems_are_solved_to_the_end(seed: int, num_requests: int, num_nodes: int, tolerance: float) -> None:
    """The bound is below the best of all assignments within the cap, and the answer is that best, up to the gap."""
    rng = np.random.default_rng(seed)
    tokens_Q = rng.integers(1, 40, num_requests)
    cost_QN = rng.uniform(0, 3, (num_requests, num_nodes)) * tokens_Q[:, None]
    answer = assign_homes(cost_QN, tokens_Q, tolerance=tolerance)
    best = brute_force(cost_QN, tokens_Q, answer.cap)
    assert answer.load_N.max() <= answer.cap
    assert answer.bound <= best + 1e-9
    assert best - 1e-9 <= answer.cost <= best * (1 + 2 * GAP) + 1e-9
    assert answer.cost == pytest.approx(float(cost_QN[np.arange(num_requests), answer.home_Q].sum()))
    share = int(tokens_Q.sum() * (1 + tolerance) / num_nodes)
    if answer.cap > share:  # raised only where nothing keeps the share
        assert brute_force(cost_QN, tokens_Q, share) == np.inf


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), num_requests=st.integers(60, 300), num_nodes=st.integers(2, 8))
def test_gap_and_balance_at_the_size_of_a_trace(seed: int, num_requests: int, num_nodes: int) -> None:
    """With many requests the tolerance is kept and the gap to the bound is at most 0.1%."""
    rng = np.random.default_rng(seed)
    tokens_Q = rng.integers(1, 600, num_requests)
    cost_QN = (3 - 2 * rng.dirichlet(np.ones(num_nodes), num_requests)) * tokens_Q[:, None]
    answer = assign_homes(cost_QN, tokens_Q)
    assert answer.token_imbalance <= 1.02 + 1e-9
    assert answer.gap <= GAP


def test_one_request_longer_than_a_share() -> None:
    """The cap gives way to the longest request and to nothing else."""
    tokens_Q = np.array([1000, 10, 10, 10])
    cost_QN = np.array([[5.0, 9.0], [1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])
    answer = assign_homes(cost_QN, tokens_Q)
    assert answer.cap == 1000
    assert answer.home_Q.tolist() == [0, 1, 1, 1]


def test_fewer_requests_than_nodes() -> None:
    """Each goes where it costs least; the other nodes stay empty."""
    answer = assign_homes(np.array([[3.0, 1.0, 2.0, 9.0], [1.0, 5.0, 5.0, 5.0]]), np.array([10, 10]))
    assert answer.home_Q.tolist() == [1, 0]
    assert answer.token_imbalance == 2.0


def test_requests_without_tokens() -> None:
    """They go in turn to the nodes with the fewest requests, whatever they would cost there."""
    tokens_Q = np.array([0, 50, 0, 50, 0])
    answer = assign_homes(np.ones((5, 2)) * tokens_Q[:, None], tokens_Q)
    assert np.bincount(answer.home_Q, minlength=2).tolist() in ([3, 2], [2, 3])
    assert answer.load_N.tolist() == [50, 50]


def test_nothing_to_assign() -> None:
    """No requests: no homes, no cost, no gap."""
    answer = assign_homes(np.zeros((0, 3)), np.zeros(0, dtype=np.int64))
    assert (len(answer.home_Q), answer.cost, answer.gap, answer.token_imbalance) == (0, 0.0, 0.0, 1.0)


def test_bad_tolerance() -> None:
    with pytest.raises(OptionError, match=r"tolerance=-0.1 must be 0 or more"):
        assign_homes(np.zeros((1, 2)), np.ones(1, dtype=np.int64), tolerance=-0.1)
