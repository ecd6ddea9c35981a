"""GPUs of a node that share load at run time: what that makes of a map's load, and maps that are placed for it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from placement import Cluster, Options, evaluate, load_placement, open_trace, save_placement, solve
from placement.core.topology import Topology
from placement.cost.load_split import optimal_split
from placement.cost.transports import TRANSPORTS
from placement.documents.cluster_yaml import cluster_from_yaml
from placement.errors import ClusterError, InfeasibleError
from placement.pipeline.solution import solution_document
from placement.solvers import get_solver
from placement.solvers.prove import objective_bound
from placement.solvers.shared_nodes import spread
from placement.testing.problems import brute_force, random_problem


def shared(nodes: int, gpus: int, slots: int, **more: Any) -> Cluster:
    shape = {"num_nodes": nodes, "gpus_per_node": gpus, "slots_per_gpu": slots}
    return Cluster(**shape, **more, run_time_balance="node")


def least_busiest(load_G: np.ndarray, cluster: Cluster) -> float:
    """The least load over speed of the busiest GPU where each GPU may give any of its load to GPUs of its node."""
    ranks, gpus, speed_G = cluster.num_ranks, cluster.gpus_per_node, cluster.speed_G()
    pairs = [(g, h) for g in range(ranks) for h in range(ranks) if g // gpus == h // gpus]
    gives, takes = np.zeros((ranks, len(pairs) + 1)), np.zeros((ranks, len(pairs) + 1))
    for place, (giver, taker) in enumerate(pairs):
        gives[giver, place] = takes[taker, place] = 1.0
    takes[:, -1] = -speed_G
    cost = np.append(np.zeros(len(pairs)), 1.0)
    return float(linprog(cost, A_ub=takes, b_ub=np.zeros(ranks), A_eq=gives, b_eq=load_G).fun)


@given(
    shape=st.sampled_from([(1, 3), (2, 1), (2, 4), (3, 2)]),
    even=st.booleans(),
    seed=st.integers(0, 2**32),
    data=st.data(),
)
def test_load_is_split_as_well_as_a_linear_program_can(
    shape: tuple[int, int], even: bool, seed: int, data: st.DataObject
) -> None:
    """Each node keeps its load, and no way to share it within nodes gives the busiest GPU less, whatever its speed."""
    rng = np.random.default_rng(seed)
    speeds = () if even else tuple(rng.uniform(0.5, 2.0, shape[0] * shape[1]).tolist())
    cluster = shared(*shape, 2, gpu_speeds=speeds)
    load_G = rng.exponential(size=cluster.num_ranks) * (rng.random(cluster.num_ranks) < 0.8)
    served_G = cluster.served_XG(load_G)
    by_node = (shape[0], -1)
    np.testing.assert_allclose(served_G.reshape(by_node).sum(axis=1), load_G.reshape(by_node).sum(axis=1))
    assert (served_G / cluster.speed_G()).max() == pytest.approx(least_busiest(load_G, cluster), abs=1e-9)
    np.testing.assert_array_equal(cluster.served_XG(np.stack([load_G, load_G])), [served_G, served_G])


@settings(max_examples=60)
@given(seed=st.integers(0, 10_000), data=st.data())
def test_what_is_left_to_place_scores_as_the_cluster_does(seed: int, data: st.DataObject) -> None:
    """Sends, imbalance and objective of a map are those of the map whose nodes are its ranks: so is what is proven."""
    nodes, gpus, slots, experts = data.draw(st.sampled_from([(2, 2, 3, 8), (3, 2, 2, 12), (4, 1, 3, 9), (2, 4, 2, 16)]))
    rng = np.random.default_rng(seed)
    unequal: dict[str, Any] = {}
    if data.draw(st.booleans()):
        unequal["gpu_speeds"] = tuple(rng.uniform(0.5, 2.0, nodes * gpus).tolist())
    if data.draw(st.booleans()):
        unequal["topology"] = Topology(node_gbps=tuple(rng.uniform(100.0, 400.0, nodes).tolist()))
    transport, choice = data.draw(st.sampled_from([("node", "min-nodes"), ("assignment", "uniform")]))
    options = Options(transport=transport, replica_choice=choice)
    cluster = shared(nodes, gpus, slots, **unequal)
    problem = random_problem(experts, 3, cluster, options=options, seed=seed)
    row = get_solver("anneal").solve_layer(replace(problem, options=replace(options, work_limit=20))).phy2log_P
    held = row.reshape(nodes, -1)
    assert all(len(set(one.tolist())) == len(one) for one in held)
    mine, left = problem.score(row), problem.balanced().score(row)
    assert mine.objective == pytest.approx(left.objective)
    assert (mine.sends, mine.imbalance, mine.node_imbalance) == pytest.approx(
        (left.sends, left.imbalance, left.node_imbalance)
    )
    assert mine.imbalance == pytest.approx(mine.node_imbalance)


@settings(max_examples=25, deadline=None)
@given(shape=st.sampled_from([(2, 2), (3, 2), (2, 3)]), seed=st.integers(0, 10_000), skew=st.sampled_from([0.0, 2.0]))
def test_what_is_proven_is_the_optimum(shape: tuple[int, int], seed: int, skew: float) -> None:
    """Of all maps, in which experts of a node lie on its GPUs in any way."""
    options = Options(work_limit=500)
    experts = shape[0] * shape[1]
    problem = random_problem(experts, 2, shared(*shape, 1), num_tokens=30, skew=skew, options=options, seed=seed)
    optimum, _ = brute_force(problem)
    for name in ("auto", "exhaustive"):
        solution = get_solver(name).solve_layer(problem)
        assert solution.status == "optimal"
        assert problem.score(solution.phy2log_P).objective == pytest.approx(optimum, abs=1e-6)
    assert objective_bound(problem) <= optimum + 1e-9


def test_experts_go_to_gpus_evenly_and_stay_where_they_are_in_use() -> None:
    """Nodes keep their experts; the hottest are on different GPUs, a faster GPU has more; a map in use is disturbed no
    more than it must be."""
    load_E = np.array([4.0, 4.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0])
    row = np.array([0, 1, 2, 3, 4, 5, 6, 7], dtype=np.int32)
    cluster = shared(2, 2, 2)
    answer = spread(row, load_E, cluster)
    assert [sorted(answer[:4].tolist()), sorted(answer[4:].tolist())] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert sorted(load_E[answer].reshape(4, 2).sum(axis=1).tolist()) == [2.0, 2.0, 5.0, 5.0]
    fast = spread(row, load_E, replace(cluster, gpu_speeds=(9.0, 1.0, 1.0, 1.0)))
    assert sorted(fast[:2].tolist()) == [0, 1]
    near = np.array([3, 1, 0, 7, 5, 4, 6, 2], dtype=np.int32)
    kept = spread(row, load_E, cluster, near)
    assert {1, 3} == set(kept[:2].tolist()) and {0, 2} == set(kept[2:4].tolist())
    assert {4, 5} == set(kept[4:6].tolist()) and {6, 7} == set(kept[6:].tolist())


def test_maps_are_placed_for_locality(tmp_path: Path, write_trace: Any) -> None:
    """Two experts that are always used together are hot: with GPUs that share load they lie on one node, and the
    figures say so; the file of the map remembers, and reads back."""
    rng = np.random.default_rng(0)
    ids_TK = np.where(
        rng.random((400, 1)) < 0.5, [[0, 1]], np.sort(rng.permuted(np.arange(8)[None].repeat(400, 0), axis=1)[:, :2])
    )
    write_trace(tmp_path / "t", ids_LTK=ids_TK[None], num_experts=8, request_T=np.arange(400) // 20, requests=20)
    trace = open_trace(tmp_path / "t")
    cluster = shared(2, 4, 1)
    solution = solve(trace, cluster, Options(work_limit=2000, balance_weight=0.2), holdout=0, workers=1)
    hosts = solution.placement.phy2log_LP[0].reshape(2, 4)
    assert any({0, 1} <= set(node.tolist()) for node in hosts)
    answer = solution.train["auto"]
    np.testing.assert_allclose(answer.rank_imbalance_L(), answer.node_imbalance_L())
    save_placement(tmp_path / "p.json", solution_document(solution))
    placement, file = load_placement(tmp_path / "p.json")
    described = file.described_cluster()
    assert described == cluster
    (again,) = evaluate(trace, [placement], cluster=described)
    assert again.summary()["rank_imbalance"] == answer.summary()["rank_imbalance"]
    (plain,) = evaluate(trace, [placement], cluster=replace(cluster, run_time_balance="none"))
    assert plain.summary()["rank_imbalance"]["mean"] > 1.5 * answer.summary()["rank_imbalance"]["mean"]


def test_the_best_split_over_copies_is_over_nodes() -> None:
    """Without copies there is nothing to split: what is left is the imbalance of nodes; a copy elsewhere evens them."""
    cluster = shared(2, 2, 2)
    load_E = np.array([3.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert optimal_split(load_E, np.arange(8), cluster)[1] == pytest.approx(6 / 4)
    assert optimal_split(load_E[:7], np.array([0, 1, 2, 3, 4, 5, 6, 0]), cluster)[1] == pytest.approx(1.0)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    """An unknown word, copies for ranks, and nodes that can hold every expert."""
    (tmp_path / "c.yaml").write_text("num_nodes: 2\ngpus_per_node: 2\nrun_time_balance: rack\n")
    with pytest.raises(ClusterError, match="run_time_balance='rack' is unknown; choose one of none, node"):
        cluster_from_yaml(tmp_path / "c.yaml", 8)
    with pytest.raises(ClusterError, match=r"run_time_balance='node' lets any GPU .* use --transport node"):
        TRANSPORTS.make("rank").check(shared(2, 2, 2))
    problem = random_problem(4, 2, shared(2, 2, 3))
    with pytest.raises(InfeasibleError, match="a node has 6 slots for 4 experts"):
        get_solver("auto").solve_layer(problem)
