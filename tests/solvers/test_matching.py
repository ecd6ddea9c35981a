"""Two experts a node: the matching is the optimum of sends for every top-k, and of all where balance is fixed."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.solvers.exact.exhaustive import Exhaustive
from placement.solvers.matching import Matching
from placement.solvers.options import Options
from placement.testing.problems import brute_force, random_problem

WITHOUT = Options(balance_weight=0.0, busy_share=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 6), st.sampled_from([1, 2]), st.integers(0, 10_000))
def test_fewest_sends_for_every_top_k(top_k: int, gpus: int, seed: int) -> None:
    """Brute force finds no fewer, for sets of one expert up to all of them."""
    cluster = Cluster(num_nodes=3, gpus_per_node=gpus, slots_per_gpu=2 // gpus)
    problem = random_problem(6, top_k, cluster, num_tokens=60, seed=seed, options=WITHOUT)
    solution = Matching().solve_layer(problem)
    assert solution.status == "optimal"
    assert problem.score(solution.phy2log_P).objective == pytest.approx(brute_force(problem)[0], abs=1e-9)


def test_one_expert_a_gpu_is_optimal_with_its_balance() -> None:
    """Balance is then the same for every map, so 64 experts on 32 nodes are proven at any price of balance."""
    cluster = Cluster(num_nodes=32, gpus_per_node=2, slots_per_gpu=1)
    problem = random_problem(64, 4, cluster, num_tokens=2000, options=Options(busy_share=0))
    solution = Matching().solve_layer(problem)
    assert solution.status == "optimal"
    assert solution.bound == pytest.approx(problem.score(solution.phy2log_P).objective)


def test_two_experts_a_gpu_trade_sends_for_balance() -> None:
    """Limits on the load of a pair find maps that are better than the matching alone; the bound holds."""
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=2)
    problem = random_problem(8, 2, cluster, skew=1.0, seed=3, options=Options(balance_weight=5.0))
    solution = Matching().solve_layer(problem)
    optimum = problem.score(Exhaustive().solve_layer(problem).phy2log_P)
    assert solution.bound is not None
    assert solution.bound <= optimum.objective + 1e-9
    sends_alone = Matching().solve_layer(random_problem(8, 2, cluster, skew=1.0, seed=3, options=WITHOUT)).phy2log_P
    assert problem.score(solution.phy2log_P).objective < problem.score(sends_alone).objective


def test_other_shapes_are_refused() -> None:
    """In words."""
    three = random_problem(6, 2, Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=3))
    assert "two of them" in str(Matching().unsupported(three))
    ranks = random_problem(
        4, 2, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=1), options=Options(transport="rank")
    )
    assert "transport node" in str(Matching().unsupported(ranks))
