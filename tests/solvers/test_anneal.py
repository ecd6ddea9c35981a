"""The annealing kernels keep exact books: what they say a map costs is what it costs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.core.topology import Topology
from placement.cost.kernel_chances import Worlds
from placement.solvers.annealing.anneal_chance import anneal_chance
from placement.solvers.annealing.anneal_common import costs_of, incidence
from placement.solvers.annealing.anneal_copies import anneal_copies
from placement.solvers.annealing.anneal_single import anneal_single
from placement.solvers.eplb import Eplb
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.testing.problems import random_problem

TRANSPORTS = st.sampled_from(["node", "rank", "assignment"])
LINKS = st.sampled_from(["even", "nodes", "ranks"])
HOMES = st.sampled_from(["random", "known", "some known"])
LACKING = st.sampled_from([0.0, 0.1, 0.6])


def any_problem(
    seed: int,
    nodes: int,
    gpus: int,
    slots: int,
    experts: int,
    top_k: int,
    speeds: bool,
    options: Options | None = None,
    links: str = "even",
    homes: str = "random",
    lacking: float = 0.0,
) -> LayerProblem:
    rng = np.random.default_rng(seed)
    relative = tuple(rng.uniform(0.5, 2.0, nodes * gpus).tolist()) if speeds else ()
    topology = {
        "even": Topology(),
        "nodes": Topology(node_gbps=tuple(rng.uniform(50, 500, nodes).tolist())),
        "ranks": Topology(rank_cost=tuple(map(tuple, rng.uniform(0, 3, (nodes * gpus,) * 2).tolist()))),
    }[links]
    cluster = Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, gpu_speeds=relative, topology=topology)
    problem = random_problem(experts, top_k, cluster, num_tokens=120, lacking=lacking, seed=seed, options=options)
    if homes == "random":
        return problem
    home_U = rng.integers(0 if homes == "known" else -1, nodes, len(problem.sets_UK)).astype(np.int32)
    return replace(problem, home_U=home_U)


def is_sound(row: npt.NDArray[np.int32], problem: LayerProblem) -> bool:
    by_rank = row.reshape(problem.cluster.num_ranks, -1)
    return set(row.tolist()) == set(range(problem.num_experts)) and all(len(set(r)) == len(r) for r in by_rank.tolist())


@pytest.mark.parametrize("hot", [0.5, 0.01])
@settings(max_examples=25)
@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from([(2, 1, 4, 2), (2, 2, 3, 3), (4, 2, 2, 4), (3, 1, 3, 2), (9, 1, 2, 3), (1, 4, 2, 2)]),
    speeds=st.booleans(),
    transport=TRANSPORTS,
    links=LINKS,
    homes=HOMES,
    lacking=LACKING,
    busy=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_single_copies(
    hot: float,
    seed: int,
    shape: tuple[int, int, int, int],
    speeds: bool,
    transport: str,
    links: str,
    homes: str,
    lacking: float,
    busy: float,
) -> None:
    """The best cost that the kernel tells is the objective of the map that it leaves, and no worse than the start's."""
    nodes, gpus, slots, top_k = shape
    experts = nodes * gpus * slots
    options = Options(transport=transport, busy_share=busy)
    problem = any_problem(seed, nodes, gpus, slots, experts, top_k, speeds, options, links, homes, lacking)
    row = np.random.default_rng(seed).permutation(experts).astype(np.int32)
    before = problem.score(row).objective
    inc, costs = incidence(problem, experts, alone=transport == "assignment"), costs_of(problem, experts)
    cost = anneal_single(row, inc, costs, hot, hot / 50, 400, np.uint64(seed))
    assert is_sound(row, problem)
    assert cost == pytest.approx(problem.score(row).objective, abs=1e-9)
    assert cost <= before + 1e-9


@pytest.mark.parametrize("seed", range(3))
def test_the_busiest_node_can_be_searched_for(seed: int) -> None:
    """A search that counts it finds maps whose busiest node gets less, for little more sends in all."""
    problem = any_problem(seed, 4, 2, 4, 32, 4, False, Options(balance_weight=0.1))
    maps = {}
    for busy in (0.0, 0.5):
        one = replace(problem, options=replace(problem.options, busy_share=busy))
        row = np.random.default_rng(seed).permutation(32).astype(np.int32)
        anneal_single(row, incidence(one, 32), costs_of(one, 32), 0.01, 0.0005, 30_000, np.uint64(seed))
        maps[busy] = replace(problem, options=replace(problem.options, busy_share=1.0)).score(row)
    assert maps[0.5].paid_sends < maps[0.0].paid_sends
    assert maps[0.5].sends < 1.05 * maps[0.0].sends


@pytest.mark.parametrize("hot", [0.5, 0.01])
@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from(
        [
            (1, 4, 2, 5, 2),
            (2, 1, 5, 7, 2),
            (2, 2, 3, 8, 3),
            (3, 1, 4, 8, 2),
            (4, 2, 3, 16, 4),
            (5, 1, 4, 9, 4),
            (6, 2, 2, 10, 5),
            (8, 1, 2, 11, 3),
            (9, 1, 2, 11, 3),
            (12, 1, 3, 8, 4),
        ]
    ),
    speeds=st.booleans(),
    homes=HOMES,
    lacking=LACKING,
    busy=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_several_copies(
    hot: float,
    seed: int,
    shape: tuple[int, int, int, int, int],
    speeds: bool,
    homes: str,
    lacking: float,
    busy: float,
) -> None:
    """The same with redundant experts: covers and shares of load are those of the exact evaluation."""
    nodes, gpus, slots, experts, top_k = shape
    options = Options(busy_share=busy)
    problem = any_problem(seed, nodes, gpus, slots, experts, top_k, speeds, options, homes=homes, lacking=lacking)
    row = Eplb().solve_layer(problem).phy2log_P.copy()
    before = problem.score(row).objective
    inc, costs = incidence(problem, experts), costs_of(problem, experts)
    cost = anneal_copies(row, inc, costs, hot, hot / 50, 400, np.uint64(seed))
    assert is_sound(row, problem)
    assert cost == pytest.approx(problem.score(row).objective, abs=1e-9)
    assert cost <= before + 1e-9


@pytest.mark.parametrize("choice", ["local-first", "uniform", "vllm-hash", "sglang-dynamic", "ascend-rank"])
@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    shape=st.sampled_from(
        [(2, 1, 5, 7, 2), (2, 2, 3, 8, 3), (4, 2, 2, 13, 4), (3, 1, 4, 8, 2), (1, 4, 2, 5, 2), (2, 2, 2, 8, 3)]
    ),
    hot=st.sampled_from([0.5, 0.01]),
    speeds=st.booleans(),
    transport=TRANSPORTS,
    links=LINKS,
    objective=st.sampled_from(["locality", "time", "balance"]),
    homes=HOMES,
    lacking=LACKING,
)
def test_copies_chosen_by_chance(
    choice: str,
    seed: int,
    shape: tuple[int, int, int, int, int],
    hot: float,
    speeds: bool,
    transport: str,
    links: str,
    objective: str,
    homes: str,
    lacking: float,
) -> None:
    """The same where copies are chosen by chance: products of chances are the exact evaluation's sums over outcomes.

    Where homes are known and decide who serves, loads are estimates, so there only sends are compared.
    """
    nodes, gpus, slots, experts, top_k = shape
    exact = homes == "random" or choice in ("uniform", "vllm-hash")
    weight = 1.5 if exact else 0.0
    options = Options(
        transport=transport, replica_choice=choice, objective=objective, balance_weight=weight, busy_share=0
    )
    if not exact and objective != "locality":
        options = replace(options, objective="locality")
    problem = any_problem(seed, nodes, gpus, slots, experts, top_k, speeds, options, links, homes, lacking)
    row = Eplb().solve_layer(problem).phy2log_P.copy()
    before = problem.score(row).objective
    inc, costs = incidence(problem, experts, alone=transport == "assignment"), costs_of(problem, experts)
    rule = problem.choice.chances
    assert rule is not None
    worlds = Worlds.of(rule, problem.cluster, costs.fare_HX.shape[1])
    fare_HXW = worlds.fare_HXW(costs.fare_HX)
    cost = anneal_chance(row, inc, costs, worlds, fare_HXW, np.inf, hot, hot / 50, 400, np.uint64(seed))
    assert is_sound(row, problem)
    assert cost == pytest.approx(problem.score(row).objective, abs=1e-9)
    assert cost <= before + 1e-9


@pytest.mark.parametrize("name", ["max_imbalance", "max_node_imbalance"])
def test_cap_is_kept(name: str) -> None:
    """Under a hard cap the search leaves a map within it, where the best map without the cap is beyond."""
    scores = {}
    for cap in (None, 1.2):
        cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=4)
        options = Options(balance_weight=0, busy_share=0, **{name: cap})  # type: ignore[arg-type]
        problem = random_problem(16, 4, cluster, seed=3, options=options)
        row = np.arange(16, dtype=np.int32)
        anneal_single(row, incidence(problem, 16), costs_of(problem, 16), 0.1, 1e-3, 20_000, np.uint64(0))
        scores[cap] = problem.score(row)
    of = {"max_imbalance": "imbalance", "max_node_imbalance": "node_imbalance"}[name]
    assert getattr(scores[None], of) > 1.3
    assert scores[1.2].feasible and getattr(scores[1.2], of) <= 1.2 + 1e-9
    assert scores[1.2].sends >= scores[None].sends
