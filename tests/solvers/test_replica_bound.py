"""The bound on sends with redundant experts is below every map, and says much."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from exact_duals import many_copies_dual, mean_sends

from placement.bounds.lagrangian_bound import lagrangian_bound
from placement.bounds.layer_bound import sends_bound, sends_pieces
from placement.bounds.set_partitions import even_splits, host_splits
from placement.core.cluster import Cluster
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.testing.problems import brute_force, random_problem

EPS = 1e-12  # rounding of the score itself
SHAPES = [  # experts, top-k, nodes, GPUs a node, slots a GPU: brute force takes a few ms
    (3, 2, 2, 1, 2),
    (4, 3, 2, 1, 3),
    (4, 2, 3, 1, 2),
    (4, 3, 3, 1, 2),
    (5, 3, 2, 1, 3),
    (3, 2, 4, 1, 2),
    (3, 3, 4, 1, 2),
    (4, 4, 3, 1, 2),
    (3, 1, 2, 1, 2),
    (4, 3, 2, 2, 2),
    (5, 4, 2, 1, 3),
]


def tiny(seed: int) -> LayerProblem:
    """Of two in five some sets are short, or empty."""
    num_experts, top_k, nodes, gpus, slots = SHAPES[seed % len(SHAPES)]
    tokens = [1, 4, 40][seed // len(SHAPES) % 3]
    return random_problem(
        num_experts,
        top_k,
        Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots),
        num_tokens=tokens,
        skew=[0.0, 1.0, 2.0][seed // 3 % 3],
        lacking=[0.0, 0.0, 0.0, 0.1, 0.5][seed % 5] if tokens > 1 else 0.0,
        seed=seed,
        options=Options(balance_weight=0.0, busy_share=0),
    )


def bound_of(problem: LayerProblem, iterations: int) -> float:
    cluster, weight_U = problem.cluster, problem.count_U / problem.count_U.sum()
    shape = (problem.num_experts, cluster.num_nodes, cluster.slots_per_node)
    return lagrangian_bound(sends_pieces(problem.sets_UK, weight_U, *shape), iterations=iterations)[0]


@pytest.mark.parametrize(
    ("name", "value", "count"), [("MOST_TOP_K", 8, 33), ("MOST_CELLS", 60, 22), ("MOST_TOP_K", 0, 22)]
)
def test_bound_is_below_the_fewest_sends(name: str, value: int, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against brute force, with a multiplier for every feature of a set, for sets that take turns, or for none."""
    monkeypatch.setattr(f"placement.bounds.token_sets.{name}", value)
    gaps = []
    for seed in range(count):
        problem = tiny(seed)
        optimum, _ = brute_force(problem)
        iterations = [3, 30, 150][seed % 3]
        found = bound_of(problem, iterations)
        assert 0 <= found <= optimum + EPS, seed
        if iterations == 150:
            gaps.append(optimum - found)
    assert np.mean(gaps) < 0.1


def test_bound_is_that_of_its_multipliers() -> None:
    """Computed once more in fractions and long double, from all that nodes could host of a set."""
    for seed in range(2 * len(SHAPES)):
        problem = tiny(seed)
        cluster, weight_U = problem.cluster, problem.count_U / problem.count_U.sum()
        shape = (problem.num_experts, cluster.num_nodes, min(cluster.slots_per_node, problem.num_experts))
        found, at = lagrangian_bound(sends_pieces(problem.sets_UK, weight_U, *shape), iterations=60)
        true = many_copies_dual(problem.sets_UK, weight_U, *shape, at)
        assert found <= max(true, 0)
        assert found == pytest.approx(max(float(true), 0), abs=1e-7)


@pytest.mark.parametrize(("top_k", "nodes", "count"), [(4, 4, 48), (3, 2, 5), (2, 3, 5), (1, 1, 1)])
def test_splits_of_a_set_with_copies(top_k: int, nodes: int, count: int) -> None:
    """By hand: 15 partitions of 4, and one more for each of the 1 + 14 + 18 blocks of those into fewer than 4."""
    splits = host_splits(top_k, nodes, top_k)
    assert len(splits.parts_PJ) == count
    costs, _ = even_splits(top_k, nodes, top_k, hosts=True)
    assert len(costs) <= count
    assert costs.min() == 0  # a set that is whole on every node


@pytest.mark.parametrize(("top_k", "nodes"), [(3, 3), (2, 4), (4, 2)])
def test_cheapest_split_is_the_cheapest_of_all(top_k: int, nodes: int) -> None:
    """For any multipliers >= 0 the few splits that are looked at have the least cost of all that nodes may host."""
    rng = np.random.default_rng(top_k)
    members = list(range(top_k))
    hosted = [part for r in range(top_k + 1) for part in itertools.combinations(members, r)]
    sends = {
        parts: mean_sends(members, parts)
        for parts in itertools.combinations_with_replacement(hosted, nodes)
        if set().union(*parts) == set(members)
    }
    splits = host_splits(top_k, nodes, top_k)
    subsets = 1 << top_k
    copies_PJ, subset_PJ = splits.parts_PJ // subsets + 1, splits.parts_PJ % subsets
    for scale in (0.03, 0.1, 0.3, 1.0):
        theta_F = rng.exponential(scale, len(splits.least_F)) * (rng.random(len(splits.least_F)) < 0.8)
        keys = [*itertools.combinations(members, 2), *((e,) for e in members)]
        price = dict(zip(keys, theta_F, strict=True))
        price_of = {part: sum(price[key] for key in keys if set(key) <= set(part)) for part in hosted}
        cost_S = np.array(
            [theta_F[splits.feature_D[splits.ptr_S[s] : splits.ptr_S[s + 1]]].sum() for s in range(subsets)]
        )
        least = (splits.cost_P + (copies_PJ * cost_S[subset_PJ]).sum(axis=1)).min()
        assert least == pytest.approx(min(float(sends[parts]) + sum(map(price_of.get, parts)) for parts in sends))


def test_bound_says_much_where_copies_are_few() -> None:
    """Structure-free tokens: the simple argument about the home alone stays far below."""
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=5)
    problem = random_problem(16, 4, cluster, num_tokens=2000, options=Options(balance_weight=0.0))
    found = bound_of(problem, 200)
    sends = problem.score(np.arange(20, dtype=np.int32) % 16).sends
    assert 0.75 * sends < found <= sends
    quick = sends_bound(problem.sets_UK, problem.count_U, 16, 4, 5)
    tight = sends_bound(problem.sets_UK, problem.count_U, 16, 4, 5, tight=True)
    assert 0.6 * sends < quick <= tight <= sends


def test_deadline_hurries_the_schedule() -> None:
    """It ends in time, with a bound that is not much worse; without any time there is the trivial one."""
    problem = tiny(3)
    weight_U = problem.count_U / problem.count_U.sum()
    began = time.monotonic()
    pieces = sends_pieces(problem.sets_UK, weight_U, 4, 3, 2)
    hurried, _ = lagrangian_bound(pieces, iterations=10**7, deadline=began + 0.3)
    assert time.monotonic() - began < 2.0
    assert hurried > bound_of(problem, 100) - 0.05
    assert lagrangian_bound(pieces, deadline=began)[0] == 0


def test_same_answer_twice() -> None:
    """No random numbers, no clock."""
    assert bound_of(tiny(2), 40) == bound_of(tiny(2), 40)
