"""The integer program proves optima of the exact objective, and what it cannot prove it does not claim."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings

from placement.core.cluster import Cluster
from placement.errors import InfeasibleError, LimitError
from placement.solvers import get_solver
from placement.solvers.exact.ilp import MAX_TERMS, Ilp
from placement.solvers.exact.ilp_symmetry import canonical_map
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.testing.problems import brute_force, make_problem, planted_problem, random_problem, tiny_problems

PAIRS = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=3)


@settings(max_examples=15, deadline=None)
@given(tiny_problems())
def test_optimum_is_that_of_brute_force(problem: LayerProblem) -> None:
    """Sends, balance over all bootstraps and their price are exactly those of the score."""
    optimum, _ = brute_force(problem)
    solution = Ilp().solve_layer(problem)
    assert solution.status == "optimal"
    assert problem.score(solution.phy2log_P).objective == pytest.approx(optimum, abs=1e-6)
    assert solution.bound is not None
    assert optimum - 1e-5 <= solution.bound <= optimum + 1e-12


def test_optimum_with_unequal_speeds() -> None:
    """Nodes that are not alike must not be exchanged by the symmetry breaking."""
    for seed in range(4):
        speeds = (1.0, 2.0, 1.0, 1.0) if seed % 2 else (1.0, 3.0, 3.0, 1.0)
        cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=1, gpu_speeds=speeds)
        problem = random_problem(4, 2, cluster, seed=seed, skew=1.0)
        optimum, _ = brute_force(problem)
        solution = Ilp().solve_layer(problem)
        assert solution.status == "optimal"
        assert problem.score(solution.phy2log_P).objective == pytest.approx(optimum, abs=1e-6)


@pytest.mark.parametrize(
    ("num_experts", "top_k", "nodes", "gpus"), [(8, 2, 4, 1), (8, 2, 4, 2), (12, 3, 3, 1), (16, 4, 2, 1)]
)
def test_proves_small_layers(num_experts: int, top_k: int, nodes: int, gpus: int) -> None:
    """Mixtral's shape and somewhat larger ones, within the default work limit."""
    cluster = Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=num_experts // (nodes * gpus))
    problem = random_problem(num_experts, top_k, cluster, num_tokens=1000)
    solution = Ilp().solve_layer(problem)
    objective = problem.score(solution.phy2log_P).objective
    assert solution.status == "optimal"
    assert solution.bound == pytest.approx(objective, abs=1e-5)
    for name in ("linear", "eplb", "graph", "anneal"):
        assert objective <= problem.score(get_solver(name).solve_layer(problem).phy2log_P).objective + 1e-6


@pytest.mark.parametrize("choice", ["min-nodes", "local-first", "uniform"])
def test_redundant_experts_get_a_bound_below_the_optimum(choice: str) -> None:
    """The program is a relaxation there, so its value is a bound for every replica choice."""
    cluster = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=3)
    for seed in range(3):
        problem = random_problem(4, 2, cluster, seed=seed, options=Options(replica_choice=choice))
        optimum, _ = brute_force(problem)
        solution = Ilp().solve_layer(problem)
        assert solution.bound is not None
        assert solution.bound <= optimum + 1e-12
        if solution.status == "optimal":
            assert problem.score(solution.phy2log_P).objective == pytest.approx(optimum, abs=1e-6)


def test_redundant_experts_on_three_nodes() -> None:
    """More than one remote node: a token is sent to the fewest that cover its experts."""
    cluster = Cluster(num_nodes=3, gpus_per_node=1, slots_per_gpu=2)
    problem = random_problem(4, 2, cluster, num_tokens=40, options=Options(work_limit=2_000_000))
    optimum, _ = brute_force(problem)
    solution = Ilp().solve_layer(problem)
    assert solution.bound is not None
    assert solution.bound <= optimum + 1e-12


def test_never_worse_than_where_it_starts() -> None:
    """A work limit of nothing leaves the best of the quick solvers."""
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=6)
    problem, _ = planted_problem(24, 4, cluster, stray=0.4, options=Options(work_limit=1))
    solution = Ilp().solve_layer(problem)
    objective = problem.score(solution.phy2log_P).objective
    assert solution.status == "limit"
    assert solution.bound is not None
    assert 0 < solution.bound < objective
    for name in ("linear", "eplb", "graph"):
        assert objective <= problem.score(get_solver(name).solve_layer(problem).phy2log_P).objective


def test_cap_that_cannot_be_met_is_proven_so() -> None:
    """One expert takes most of the load: the user hears that no map exists, not that none was found."""
    ids = np.array([[0, 1]] * 8 + [[0, 2], [0, 3], [0, 4], [0, 5]])
    problem = make_problem(ids, PAIRS, num_experts=6, options=Options(max_imbalance=1.05))
    with pytest.raises(InfeasibleError, match=r"max_imbalance=1\.05.*--redundant-experts"):
        Ilp().solve_layer(problem)


def test_cap_that_can_be_met_is_met() -> None:
    """The best map without the cap breaks it, so the cap decides."""
    ids = np.array([[0, 1]] * 6 + [[0, 2]] * 3 + [[1, 2]] * 3 + [[3, 4], [4, 5], [3, 5]])
    free = make_problem(ids, PAIRS, num_experts=6, options=Options(balance_weight=0.0))
    capped = replace(free, options=Options(balance_weight=0.0, max_imbalance=1.4))
    free_score = free.score(Ilp().solve_layer(free).phy2log_P)
    solution = Ilp().solve_layer(capped)
    score = capped.score(solution.phy2log_P)
    assert free_score.imbalance > 1.4 >= score.imbalance
    assert score.sends > free_score.sends
    assert solution.status == "optimal"


def test_cap_not_met_in_time_is_a_limit() -> None:
    """Out of time is not infeasible: the message says which figure was reached."""
    ids = np.array([[0, 1]] * 8 + [[0, 2], [0, 3], [0, 4], [0, 5]])
    problem = make_problem(ids, PAIRS, num_experts=6, options=Options(max_imbalance=1.05))
    with pytest.raises(LimitError, match="the best has 1"):
        Ilp().solve_layer(replace(problem, deadline=time.monotonic() - 1))


def test_deadline_is_kept() -> None:
    """CP-SAT gets what is left of the time, not its own default."""
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=6)
    problem = random_problem(24, 4, cluster, num_tokens=500)
    start = time.monotonic()
    solution = Ilp().solve_layer(replace(problem, deadline=start + 1.0))
    assert time.monotonic() - start < 6
    assert solution.status == "limit"


def test_too_large_a_program_is_turned_down_in_words() -> None:
    """It would run for hours; the reason gives the size and what is allowed."""
    cluster = Cluster(num_nodes=64, gpus_per_node=1, slots_per_gpu=4)
    problem = random_problem(256, 8, cluster, num_tokens=1000)
    reason = Ilp().unsupported(problem)
    assert reason is not None
    assert f"{MAX_TERMS} are allowed" in reason


@settings(max_examples=30, deadline=None)
@given(tiny_problems())
def test_canonical_map_scores_the_same(problem: LayerProblem) -> None:
    """Symmetry breaking may only rename nodes and ranks that are alike."""
    cluster = problem.cluster
    speeds = tuple(1.0 + g % 2 for g in range(cluster.num_ranks))
    uneven = replace(problem, cluster=replace(cluster, gpu_speeds=speeds))
    row = np.random.default_rng(problem.seed).permutation(problem.num_experts).astype(np.int32)
    for case in (problem, uneven):
        assert case.score(canonical_map(row, case)).objective == pytest.approx(case.score(row).objective)
