"""The EPLB port is the published algorithm, mended where engines would fail on its maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from published_eplb import published_row

from placement.core.cluster import Cluster
from placement.solvers.eplb import Eplb, balanced_packing, eplb_map, replicate_experts
from placement.solvers.options import Options
from placement.testing.problems import random_problem

README_LOADS = [
    [90, 132, 40, 61, 104, 165, 39, 4, 73, 56, 183, 86],
    [20, 107, 104, 64, 19, 197, 187, 157, 172, 86, 16, 27],
]
README_MAPS = [
    [5, 6, 5, 7, 8, 4, 3, 4, 10, 9, 10, 2, 0, 1, 11, 1],
    [7, 10, 6, 8, 6, 11, 8, 9, 2, 4, 5, 1, 5, 0, 3, 1],
]


@pytest.mark.parametrize(("loads", "expected"), [*zip(README_LOADS, README_MAPS, strict=True)])
def test_published_example(loads: list[int], expected: list[int]) -> None:
    """The README of deepseek-ai/EPLB prints these maps for 2 nodes of 4 GPUs and 4 groups."""
    found = eplb_map(np.array(loads, dtype=float), num_slots=16, num_groups=4, num_nodes=2, num_ranks=8)
    assert found.tolist() == expected


@pytest.mark.parametrize(("loads", "expected"), [*zip(README_LOADS, README_MAPS, strict=True)])
def test_the_reference_of_the_tests_gives_the_published_example(loads: list[float], expected: list[int]) -> None:
    """Other tests take their maps from it."""
    assert published_row(loads, 16, 4, 2, 8) == expected


@settings(max_examples=50)
@given(
    shape=st.sampled_from([(32, 8, 2, 8, 4), (64, 16, 2, 8, 1), (24, 8, 4, 8, 3), (12, 4, 1, 4, 1)]),
    seed=st.integers(0, 10**6),
)
def test_maps_are_those_of_the_published_algorithm(shape: tuple[int, ...], seed: int) -> None:
    """With what the solver mends left out: experts twice on a rank included."""
    experts, redundant, nodes, ranks, groups = shape
    load_E = np.random.default_rng(seed).lognormal(0.0, 1.0, experts)
    slots = experts + redundant
    ours = eplb_map(load_E, num_slots=slots, num_groups=groups, num_nodes=nodes, num_ranks=ranks)
    assert ours.tolist() == published_row(load_E.tolist(), slots, groups, nodes, ranks)


def test_groups_that_nodes_do_not_divide_fall_back_to_global() -> None:
    """The original takes the global policy then; groups must not matter."""
    loads = np.array(README_LOADS[0], dtype=float)
    grouped = eplb_map(loads, num_slots=16, num_groups=3, num_nodes=2, num_ranks=8)
    assert grouped.tolist() == eplb_map(loads, num_slots=16, num_groups=1, num_nodes=1, num_ranks=8).tolist()


def test_hierarchical_policy_keeps_groups_on_nodes() -> None:
    """That is its point: a token of few groups goes to few nodes."""
    rng = np.random.default_rng(0)
    row = eplb_map(rng.random(32), num_slots=40, num_groups=8, num_nodes=4, num_ranks=8)
    nodes_of_group = [{p // 10 for p in np.flatnonzero(row // 4 == group)} for group in range(8)]
    assert [len(nodes) for nodes in nodes_of_group] == [1] * 8


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=24), st.integers(0, 24))
def test_replicas_minimise_the_hottest_copy(loads: list[float], extra: int) -> None:
    """No way of sharing out the slots has a lower load per copy than the greedy one."""
    weight = np.array(loads)
    phy2log, count = replicate_experts(weight, len(loads) + extra)
    assert count.sum() == len(loads) + extra
    assert np.array_equal(np.bincount(phy2log, minlength=len(loads)), count)
    lower = (weight / count).max() * (1 - 1e-9)
    # to get every copy below that, more slots would be needed than there are
    assert lower == 0 or sum(int(load / lower) + 1 for load in loads) > len(loads) + extra


@settings(max_examples=50)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 1000))
def test_packing_fills_every_pack(packs: int, size: int, seed: int) -> None:
    """Engines need exactly the same number of slots on every rank."""
    weight = np.random.default_rng(seed).random(packs * size)
    pack, place = balanced_packing(weight, packs)
    assert sorted(zip(pack.tolist(), place.tolist(), strict=True)) == [
        (a, b) for a in range(packs) for b in range(size)
    ]


def test_packing_is_close_to_even() -> None:
    """Heaviest first is within 4/3 of the best; a pack is never above mean + heaviest item."""
    weight = np.random.default_rng(1).random(64)
    pack, _ = balanced_packing(weight, 8)
    total = np.bincount(pack, weights=weight)
    assert total.max() <= total.mean() + weight.max()


def test_solver_mends_doubles() -> None:
    """The original may put an expert twice on a rank (its issue #22), which wastes a slot; our solvers never do."""
    cluster = Cluster(num_nodes=1, gpus_per_node=2, slots_per_gpu=4)
    problem = random_problem(4, 2, cluster, skew=3.0, options=Options())
    row = Eplb().solve_layer(problem).phy2log_P.reshape(2, 4)
    assert all(len(set(held)) == 4 for held in row.tolist())
