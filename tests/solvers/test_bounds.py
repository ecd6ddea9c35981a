"""Lower bounds are below every map: what they prove is true."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.bounds.convex_envelope import fewest_nodes, least_at, least_of_all, lower_lines
from placement.bounds.layer_bound import sends_bound, smallest_imbalance
from placement.core.choices import BOUNDS
from placement.core.cluster import Cluster
from placement.solvers import get_solver
from placement.solvers.auto import Auto
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.solvers.prove import objective_bound, prove
from placement.testing.problems import brute_force, make_problem, planted_problem, random_problem, tiny_problems

EPS = 1e-12  # rounding of the score itself
POINTS = st.dictionaries(st.integers(0, 30), st.integers(0, 9), min_size=1, max_size=8)


def test_objective_bound_is_below_the_optimum_of_random_problems() -> None:
    """One copy per expert: shapes, speeds, skews and prices at random, against brute force."""
    shapes = [(4, 2, 2, 1, 2), (6, 2, 3, 1, 2), (6, 3, 2, 1, 3), (4, 2, 4, 1, 1), (6, 3, 2, 3, 1), (6, 1, 3, 1, 2)]
    for seed in range(60):
        num_experts, top_k, nodes, gpus, slots = shapes[seed % len(shapes)]
        speeds = tuple(1.0 + 0.3 * g for g in range(nodes * gpus)) if seed % 4 == 0 else ()
        problem = random_problem(
            num_experts,
            top_k,
            Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, gpu_speeds=speeds),
            num_tokens=[1, 5, 60][seed % 3],
            skew=[0.0, 0.7, 2.0][seed // 7 % 3],
            lacking=[0.0, 0.0, 0.0, 0.1, 0.5][seed % 5],
            seed=seed,
            options=Options(balance_weight=[0.0, 0.5, 2.0, 5.0][seed // 3 % 4]),
        )
        optimum, _ = brute_force(problem)
        assert objective_bound(problem) <= optimum + EPS, seed


@settings(max_examples=40, deadline=None)
@given(tiny_problems(redundant=True), st.sampled_from(["min-nodes", "local-first", "uniform"]))
def test_objective_bound_is_below_the_optimum_with_redundant_experts(problem: LayerProblem, choice: str) -> None:
    """It has to hold for every replica choice."""
    problem = replace(problem, options=replace(problem.options, replica_choice=choice))
    optimum, _ = brute_force(problem)
    assert objective_bound(problem) <= optimum + EPS


@settings(max_examples=40, deadline=None)
@given(tiny_problems())
def test_sends_bound_is_below_the_fewest_sends(problem: LayerProblem) -> None:
    """With balance free of charge the objective is sends alone."""
    free = replace(problem, options=replace(problem.options, balance_weight=0.0))
    optimum, _ = brute_force(free)
    cluster = problem.cluster
    found = sends_bound(
        problem.sets_UK, problem.count_U, problem.num_experts, cluster.num_nodes, cluster.slots_per_node
    )
    assert found <= optimum + EPS


def test_bound_is_tight_where_tokens_stay_in_their_group() -> None:
    """A perfect planted partition sends a token's copy to one node: the bound must find that out, not say less."""
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=8)
    problem, planted = planted_problem(32, 4, cluster, num_tokens=4000, stray=0.0)
    score = problem.score(planted)
    assert score.sends == pytest.approx(0.75)
    assert sends_bound(problem.sets_UK, problem.count_U, 32, 4, 8) == pytest.approx(0.75, abs=0.01)


def test_bound_says_more_than_one_node_a_token_on_structure_free_tokens() -> None:
    """The linear relaxation says lambda >= 1 there, which is worthless."""
    problem = random_problem(32, 4, Cluster(num_nodes=4, gpus_per_node=2, slots_per_gpu=4), num_tokens=4000)
    score = problem.score(np.arange(32, dtype=np.int32))
    assert sends_bound(problem.sets_UK, problem.count_U, 32, 4, 8) > 0.8 * score.sends


def test_bound_prices_balance_and_sends_together() -> None:
    """Where the tokens that belong together overload a node, no map has the best of both."""
    rng = np.random.default_rng(0)
    hot = np.array([rng.choice(4, 2, replace=False) for _ in range(900)])
    cold = np.array([4 + rng.choice(4, 2, replace=False) for _ in range(100)])
    cluster = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=4)
    problem = make_problem(np.concatenate([hot, cold]), cluster, num_experts=8, options=Options(balance_weight=0.5))
    apart = sends_bound(problem.sets_UK, problem.count_U, 8, 2, 4) + 0.5
    optimum, _ = brute_force(problem)
    assert apart + 0.05 < objective_bound(problem) <= optimum


def test_more_steps_never_give_a_lower_bound_at_the_end_of_the_same_run() -> None:
    """The best is kept, so many steps are at least nearly as good as few."""
    problem = random_problem(16, 3, Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=8))
    assert objective_bound(problem, 300) >= objective_bound(problem, 10) - 0.01


@pytest.mark.parametrize(("num_nodes", "slots_per_node"), [(1, 4), (1, 6)])
def test_one_node_sends_nothing(num_nodes: int, slots_per_node: int) -> None:
    """There is no other node to send to."""
    assert sends_bound(np.array([[0, 1]]), np.array([3]), 4, num_nodes, slots_per_node) == 0.0


def test_experts_everywhere_send_nothing() -> None:
    """Every home hosts every expert, so a bound above 0 would be wrong."""
    assert sends_bound(np.array([[0, 1], [2, 3]]), np.array([3, 4]), 4, 2, 4) == 0.0


def test_fewest_nodes_of_a_token() -> None:
    """K = 4 on three nodes of two slots: 2+2 has 2 pairs on two nodes, 2+1+1 has 1 on three; 0 pairs do not fit."""
    assert fewest_nodes(4, 3, 2) == {2: 2, 1: 3}


@given(POINTS)
def test_envelope_is_below_every_point(values: dict[int, int]) -> None:
    """Jensen's inequality needs a convex function below all points; nowhere rising, so that an upper mean suffices."""
    _, line_b = lower_lines(values)
    assert (line_b >= 0).all()
    for x, y in values.items():
        assert least_at(values, x) <= y + 1e-9
    assert least_at(values, min(values)) == pytest.approx(values[min(values)])


@given(st.lists(POINTS, min_size=1, max_size=3), st.data())
def test_envelope_of_groups_is_below_every_choice(groups: list[dict[int, int]], data: st.DataObject) -> None:
    """Whichever point each group takes: the means of all together are not below what is said to be the least."""
    share_G = np.array([data.draw(st.integers(1, 9)) for _ in groups]) / 9
    for chosen in itertools.product(*(values.items() for values in groups)):
        x, y = share_G @ np.array(chosen)
        assert least_of_all(list(zip(share_G.tolist(), groups, strict=True)), x) <= y + 1e-9
    least = sum(share * min(values.values()) for share, values in zip(share_G, groups, strict=True))
    assert least_of_all(list(zip(share_G.tolist(), groups, strict=True)), 1e6) == pytest.approx(least)


@settings(max_examples=60, deadline=None)
@given(st.booleans(), st.integers(0, 10_000), st.sampled_from([0.0, 0.5, 2.0, 4.0]))
def test_smallest_imbalance_is_below_every_map(redundant: bool, seed: int, skew: float) -> None:
    """InfeasibleError rests on it."""
    rng = np.random.default_rng(seed)
    speeds = (1.0, 2.0, 1.0, 0.5) if seed % 2 else ()
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3 if redundant else 2, gpu_speeds=speeds)
    problem = random_problem(8, 2, cluster, skew=skew, seed=seed, num_tokens=30)
    least = smallest_imbalance(problem.load_E, cluster)
    extra = rng.integers(0, 8, cluster.num_slots - 8)
    row = rng.permutation(np.concatenate([np.arange(8), extra])).astype(np.int32)
    if all(len(set(held)) == len(held) for held in row.reshape(4, -1).tolist()):
        assert least <= problem.score(row).imbalance + EPS


def test_smallest_imbalance_counts_the_company_of_the_hottest() -> None:
    """Two slots a rank and three hot experts on two ranks: two of them share a rank."""
    cluster = Cluster(num_nodes=1, gpus_per_node=2, slots_per_gpu=2)
    assert smallest_imbalance(np.array([1.0, 1.0, 1.0, 0.0]) / 3, cluster) == pytest.approx(4 / 3)


@pytest.mark.parametrize("price", [0.0, 1.5])
def test_bound_option(price: float) -> None:
    """`tight` is never below `quick`, neither is above the answer, and `none` computes nothing."""
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=4)
    answers = {}
    for bound in BOUNDS:
        options = Options(balance_weight=price, bound=bound, work_limit=20_000)
        problem = random_problem(16, 4, cluster, seed=1, options=options)
        solution = get_solver("auto").solve_layer(problem)
        answers[bound] = solution.bound
        if solution.bound is not None:
            assert solution.bound <= problem.score(solution.phy2log_P).objective + 1e-9
    assert answers["none"] is None
    assert answers["quick"] < answers["tight"]


def test_tight_bound_leads_to_a_map() -> None:
    """Most tokens stay in their group: the relaxed matrix, rounded, finds the groups; the quick bound has no map."""
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=4)
    options = Options(balance_weight=0.0, bound="tight", work_limit=20)
    problem, planted = planted_problem(16, 4, cluster, num_tokens=100, stray=0.3, options=options)
    _, start = prove(problem)
    assert start is not None
    assert problem.score(start).sends == pytest.approx(problem.score(planted).sends)
    assert prove(replace(problem, options=replace(options, bound="quick")))[1] is None
    answer = Auto().solve_layer(problem)  # with next to no moves of its own
    assert problem.score(answer.phy2log_P).sends <= problem.score(start).sends
