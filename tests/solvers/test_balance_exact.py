"""Proven optima of balance: published cases, and brute force on small ones."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.bounds.layer_bound import smallest_imbalance
from placement.core.cluster import Cluster
from placement.core.placement import map_faults
from placement.errors import OptionError
from placement.solvers.balancing.balance_exact import exact_balance
from placement.solvers.balancing.balance_solver import Balance
from placement.solvers.options import Options
from placement.testing.problems import brute_force, random_problem

FLASHLB = [600, 560, 120, 120, 20, 10, 10, 10]
README = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]


def test_published_example_of_flashlb() -> None:
    """vllm-ascend's FlashLB prints 205 for it, EPLB's maps have 232; 560 / 3 + 10 is the least that is possible."""
    found = exact_balance(np.array(FLASHLB), Cluster(num_nodes=1, gpus_per_node=8, slots_per_gpu=2))
    assert found.proven
    assert found.imbalance * sum(FLASHLB) / 8 == pytest.approx(560 / 3 + 10, abs=1e-9)
    assert sorted(np.bincount(found.phy2log_P)[:2].tolist()) == [3, 4]


@pytest.mark.parametrize(
    ("loads", "groups", "balancedness"),
    [(README[0], 4, 0.855), (README[1], 4, 0.805), (README[0], None, 0.949), (README[1], None, 0.840)],
)
def test_published_example_of_eplb(loads: list[int], groups: int | None, balancedness: float) -> None:
    """The README of deepseek-ai/EPLB: mean over max of its GPUs, with the groups kept on nodes and without."""
    cluster = Cluster(num_nodes=2, gpus_per_node=4, slots_per_gpu=2)
    found = exact_balance(np.array(loads), cluster, num_groups=groups)
    assert found.proven
    assert 1 / found.imbalance == pytest.approx(balancedness, abs=5e-4)
    if groups:
        node_P = np.arange(16) // 8
        assert all(len(set(node_P[found.phy2log_P // 3 == group].tolist())) == 1 for group in range(groups))


def least_imbalance(load_E: np.ndarray, cluster: Cluster, num_groups: int | None = None) -> float:  # type: ignore[type-arg]
    """Of all maps, one by one."""
    held = list(itertools.combinations(range(len(load_E)), cluster.slots_per_gpu))
    size = len(load_E) // (num_groups or 1)
    best = math.inf
    for ranks in itertools.product(held, repeat=cluster.num_ranks):
        copies_E = np.bincount(np.array(ranks).ravel(), minlength=len(load_E))
        if not copies_E.all():
            continue
        if num_groups is not None:
            nodes = [
                {e // size for rank in ranks[n :: cluster.num_nodes] for e in rank} for n in range(cluster.num_nodes)
            ]
            if any(a & b for a, b in itertools.combinations(nodes, 2)):
                continue
        load_G = [sum(load_E[e] / copies_E[e] for e in rank) for rank in ranks]
        best = min(best, float((np.array(load_G) / cluster.speed_G()).max()))
    return best / (float(load_E.sum()) / cluster.num_ranks)


SHAPES = [(4, 2, 2), (3, 3, 2), (4, 3, 2), (5, 3, 2), (5, 2, 4), (4, 4, 2)]  # experts, ranks, slots


@st.composite
def tiny_layers(draw: st.DrawFn) -> tuple[np.ndarray, Cluster]:  # type: ignore[type-arg]
    num_experts, ranks, slots = draw(
        st.sampled_from([(4, 2, 2), (3, 3, 2), (4, 3, 2), (5, 3, 2), (5, 2, 4), (4, 4, 2)])
    )
    whole = st.integers(0, 12).map(float)
    loads = draw(st.lists(whole | st.floats(0.01, 20.0), min_size=num_experts, max_size=num_experts))
    loads[0] = max(loads[0], 1.0)
    speeds = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 1.5]), min_size=ranks, max_size=ranks))
    return np.array(loads), Cluster(
        num_nodes=1, gpus_per_node=ranks, slots_per_gpu=slots, gpu_speeds=tuple(speeds or ())
    )


@settings(max_examples=60, deadline=None)
@given(tiny_layers())
def test_no_map_is_more_balanced(layer: tuple[np.ndarray, Cluster]) -> None:  # type: ignore[type-arg]
    """Brute force over all maps finds the same least imbalance; with unequal speeds and odd loads too."""
    load_E, cluster = layer
    found = exact_balance(load_E, cluster)
    least = least_imbalance(load_E, cluster)
    assert found.proven
    assert found.imbalance == pytest.approx(least, rel=1e-9)
    assert smallest_imbalance(load_E, cluster) <= least * (1 + 1e-9)
    assert not map_faults(
        found.phy2log_P[None],
        num_layers=1,
        num_experts=len(load_E),
        num_ranks=cluster.num_ranks,
        slots_per_gpu=cluster.slots_per_gpu,
    )


def test_no_map_that_keeps_groups_is_more_balanced() -> None:
    """Nodes of unequal speed: the slow one must get the light groups."""
    cluster = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=2, gpu_speeds=(1.0, 2.0))
    rng = np.random.default_rng(3)
    for _ in range(20):
        load_E = rng.integers(1, 30, 4).astype(float)
        found = exact_balance(load_E, cluster, num_groups=2)
        assert found.proven
        assert found.imbalance == pytest.approx(least_imbalance(load_E, cluster, 2))


def test_a_limit_gives_up_the_proof_alone() -> None:
    """Where the tree is cut the map is still one as balanced as `balance_maps`, but it is not called proven."""
    cluster = Cluster(num_nodes=1, gpus_per_node=8, slots_per_gpu=4)
    load_E = np.random.default_rng(0).lognormal(0, 1, 24)
    found = exact_balance(load_E, cluster, nodes=1000)
    assert not found.proven
    assert found.imbalance < 1.05


def test_the_solver_finds_the_optimum_of_small_layers() -> None:
    """Solver `balance` searches small layers to the end."""
    cluster = Cluster(num_nodes=1, gpus_per_node=3, slots_per_gpu=2)
    for seed in range(5):
        problem = random_problem(4, 2, cluster, skew=1.5, seed=seed)
        row = Balance().solve_layer(problem).phy2log_P
        each_E = problem.load_E / np.bincount(row)
        most = each_E[row].reshape(3, 2).sum(axis=1).max()
        assert most * 3 == pytest.approx(least_imbalance(problem.load_E, cluster))


def test_groups_that_nodes_do_not_divide_are_refused() -> None:
    """As by `balance_maps`."""
    with pytest.raises(OptionError, match="cannot be kept on 2 nodes"):
        exact_balance(np.ones(6), Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=3), num_groups=3)


def test_optimal_is_said_of_balance_alone() -> None:
    """Where the objective has sends in it, or bootstraps, the most balanced map need not be the best one."""
    cluster = Cluster(num_nodes=1, gpus_per_node=2, slots_per_gpu=3)
    alone = random_problem(6, 2, cluster, bootstraps=0, options=Options(objective="balance"))
    solution = Balance().solve_layer(alone)
    assert solution.status == "optimal"
    assert solution.bound == pytest.approx(brute_force(alone)[0])
    for more in ({"bootstraps": 3}, {"options": Options()}):
        problem = random_problem(6, 2, cluster, **{"bootstraps": 0, "options": Options(objective="balance"), **more})
        assert Balance().solve_layer(problem).status == "feasible"
