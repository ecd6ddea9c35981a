"""`relabel` against every permutation that hardware allows, and against the score."""

from __future__ import annotations

from itertools import permutations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.core.relabel import moved_P, relabel
from placement.core.topology import Level, Topology
from placement.solvers.options import Options
from placement.testing.problems import random_problem

Row = npt.NDArray[np.int32]
COSTS = tuple(tuple(float(abs(a - b)) for b in range(4)) for a in range(4))
CLUSTERS = [
    Cluster(num_nodes=3, gpus_per_node=2, slots_per_gpu=2),
    Cluster(num_nodes=2, gpus_per_node=3, slots_per_gpu=2),
    Cluster(num_nodes=1, gpus_per_node=4, slots_per_gpu=2),
    Cluster(num_nodes=3, gpus_per_node=2, slots_per_gpu=2, gpu_speeds=(1.0, 2.0, 2.0, 1.0, 1.0, 1.0)),
    Cluster(
        num_nodes=4, gpus_per_node=1, slots_per_gpu=3, topology=Topology(levels=(Level(name="r", nodes=2, gbps=9.0),))
    ),
    Cluster(num_nodes=3, gpus_per_node=1, slots_per_gpu=3, topology=Topology(node_gbps=(400.0, 100.0, 400.0))),
    Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3, topology=Topology(rank_cost=COSTS)),
]


def random_map(rng: np.random.Generator, cluster: Cluster, num_experts: int) -> Row:
    """Any sound map of so many experts, drawn rank by rank."""
    while True:
        row = np.concatenate(
            [rng.choice(num_experts, cluster.slots_per_gpu, replace=False) for _ in range(cluster.num_ranks)]
        )
        if len(set(row.tolist())) == num_experts:
            return row.astype(np.int32)


@st.composite
def pairs(draw: Any) -> tuple[Cluster, Row, Row, int]:
    """A cluster, two sound maps on it and a seed; the number of experts leaves room for some copies or none."""
    cluster = draw(st.sampled_from(CLUSTERS))
    seed = draw(st.integers(0, 10_000))
    rng = np.random.default_rng(seed)
    if draw(st.booleans()):
        return cluster, *(rng.permutation(cluster.num_slots).astype(np.int32) for _ in range(2)), seed
    num_experts = cluster.num_slots // 2 + 1
    return cluster, random_map(rng, cluster, num_experts), random_map(rng, cluster, num_experts), seed


def fewest_moves(current_P: Row, new_P: Row, cluster: Cluster) -> int:
    """By trying every order of nodes and of the GPUs in each that leaves speeds and links as they are."""
    nodes, gpus = cluster.num_nodes, cluster.gpus_per_node
    if cluster.topology.rank_cost:
        return int(moved_P(current_P, new_P, cluster).sum())
    cost = cluster.topology.node_cost_NN(nodes, gpus, cluster.inter_gbps)
    fewest = cluster.num_slots
    for order in permutations(range(nodes)):
        if not np.array_equal(cost[np.ix_(order, order)], cost):
            continue
        for inner in product(permutations(range(gpus)), repeat=nodes):
            ranks = [order[n] * gpus + g for n in range(nodes) for g in inner[n]]
            if not np.array_equal(cluster.speed_G()[ranks], cluster.speed_G()):
                continue
            row = new_P.reshape(cluster.num_ranks, -1)[ranks].ravel()
            fewest = min(fewest, int(moved_P(current_P, row, cluster).sum()))
    return fewest


@settings(max_examples=60)
@given(pairs())
def test_no_naming_moves_less(case: tuple[Cluster, Row, Row, int]) -> None:
    """The fewest moves of all namings of nodes and GPUs that are alike; racks trade places in the reference alone."""
    cluster, current_P, new_P, _ = case
    moves = int(moved_P(current_P, relabel(current_P, new_P, cluster), cluster).sum())
    if cluster.topology.levels:  # whole racks could trade places too: left out, to be simple
        assert fewest_moves(current_P, new_P, cluster) <= moves <= moved_P(current_P, new_P, cluster).sum()
    else:
        assert moves == fewest_moves(current_P, new_P, cluster)


@pytest.mark.parametrize("transport", ["node", "rank", "assignment"])
@pytest.mark.parametrize("choice", ["min-nodes", "local-first", "uniform"])
@settings(max_examples=15)
@given(case=pairs())
def test_the_score_stays(choice: str, transport: str, case: tuple[Cluster, Row, Row, int]) -> None:
    """A relabelled map is as good as the map itself, whatever the engine sends and how it chooses replicas."""
    cluster, current_P, new_P, seed = case
    options = Options(replica_choice=choice, transport=transport, max_node_imbalance=1.3)
    problem = random_problem(int(new_P.max()) + 1, 2, cluster, num_tokens=60, seed=seed, options=options)
    before, after = problem.score(new_P), problem.score(relabel(current_P, new_P, cluster))
    for name in ("objective", "sends", "imbalance", "expected_imbalance"):
        assert getattr(after, name) == pytest.approx(getattr(before, name), abs=1e-9)
    assert after.feasible == before.feasible


@settings(max_examples=60)
@given(pairs())
def test_what_stays_keeps_its_slot(case: tuple[Cluster, Row, Row, int]) -> None:
    """An expert that its rank holds already is in the slot where it lies, and a map is nearest to itself."""
    cluster, current_P, new_P, _ = case
    row = relabel(current_P, new_P, cluster)
    stays = ~moved_P(current_P, row, cluster)
    assert row.dtype == np.int32
    assert np.array_equal(row[stays], current_P[stays])
    assert sorted(row.tolist()) == sorted(new_P.tolist())
    assert np.array_equal(relabel(current_P, current_P, cluster), current_P)
    assert np.array_equal(relabel(row, new_P, cluster), row)
