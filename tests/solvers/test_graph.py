"""The graph solver finds groups of experts that are used together, and keeps parts equal."""

from __future__ import annotations

import time

import numpy as np
import pytest

from placement.core.cluster import Cluster
from placement.solvers.graph import Graph
from placement.solvers.linear import linear_map
from placement.solvers.moves import capped_copies
from placement.testing.problems import planted_problem, random_problem


@pytest.mark.parametrize("nodes", [2, 3, 4, 5, 7])
def test_recovers_planted_groups(nodes: int) -> None:
    """Also where the number of nodes is no power of two, so that the sides of a bisection are unequal."""
    cluster = Cluster(num_nodes=nodes, gpus_per_node=2, slots_per_gpu=4)
    problem, planted = planted_problem(8 * nodes, 3, cluster, num_tokens=2000, stray=0.05)
    found = Graph().solve_layer(problem).phy2log_P
    groups = {frozenset(part) for part in planted.reshape(nodes, 8).tolist()}
    assert {frozenset(part) for part in found.reshape(nodes, 8).tolist()} == groups


def test_sends_less_than_linear_on_weak_structure() -> None:
    """Half of the tokens stray; the rest must still be worth something."""
    cluster = Cluster(num_nodes=4, gpus_per_node=2, slots_per_gpu=4)
    problem, _ = planted_problem(32, 4, cluster, num_tokens=3000, stray=0.5)
    found = problem.score(Graph().solve_layer(problem).phy2log_P)
    assert found.sends < 0.9 * problem.score(linear_map(32, 32)).sends


def test_copies_of_an_expert_go_to_different_nodes() -> None:
    """A second copy on the same node saves no send."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3)
    problem = random_problem(8, 2, cluster, skew=1.0, num_tokens=500)
    row = Graph().solve_layer(problem).phy2log_P
    copies = np.bincount(row, minlength=8)
    for e in np.flatnonzero(copies == 2):
        assert {p // 6 for p in np.flatnonzero(row == e)} == {0, 1}


def test_copies_are_capped_at_one_a_rank() -> None:
    """The hottest expert cannot take more slots than there are ranks; the next hottest get them."""
    cluster = Cluster(num_nodes=1, gpus_per_node=2, slots_per_gpu=3)
    expert_P, copies_E = capped_copies(np.array([0.9, 0.05, 0.03, 0.02]), cluster)
    assert copies_E.tolist() == [2, 2, 1, 1]
    assert expert_P.tolist() == [0, 1, 2, 3, 0, 1]


def test_fast_nodes_take_the_heavy_parts() -> None:
    """Half the speed is half the load that a node carries in the same time."""
    cluster = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=4, gpu_speeds=(1.0, 3.0))
    problem = random_problem(8, 2, cluster, skew=1.5)
    row = Graph().solve_layer(problem).phy2log_P
    load_N = problem.load_E[row].reshape(2, 4).sum(axis=1)
    assert load_N[1] >= load_N[0]


def test_a_large_layer_takes_a_moment() -> None:
    """256 experts, as in DeepSeek-V3, in CPU seconds; the limit leaves room for slow machines."""
    cluster = Cluster(num_nodes=4, gpus_per_node=8, slots_per_gpu=8)
    problem, _ = planted_problem(256, 8, cluster, num_tokens=2000)
    start = time.process_time()
    Graph().solve_layer(problem)
    assert time.process_time() - start < 5
