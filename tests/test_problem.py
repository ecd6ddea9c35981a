"""What a layer's score is made of, under every transport, objective and cap, against sums over maps by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import Map, layer_links

from placement import Cluster, open_trace
from placement.core.choices import OBJECTIVES
from placement.core.topology import Topology
from placement.cost.step_time import Term, Work, term_times_us
from placement.cost.transports import TRANSPORTS
from placement.solvers.layer_problems import layer_problem
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.testing.problems import random_problem
from placement.workload.count import count

REDUNDANT = (0, 4)


@st.composite
def problems(draw: st.DrawFn, **fixed: Any) -> tuple[LayerProblem, np.ndarray]:
    """A problem of 8 experts with uneven links and speeds, and a random map of it."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    nodes, gpus = draw(st.sampled_from([(2, 2), (4, 1), (2, 1)]))
    redundant = draw(st.sampled_from(REDUNDANT))
    ranks = nodes * gpus
    topology = Topology(node_gbps=tuple(rng.uniform(50, 500, nodes).tolist()))
    if draw(st.booleans()):
        topology = Topology(rank_cost=tuple(map(tuple, rng.uniform(0, 3, (ranks, ranks)).tolist())))
    cluster = Cluster(
        num_nodes=nodes,
        gpus_per_node=gpus,
        slots_per_gpu=(8 + redundant) // ranks,
        gpu_speeds=tuple(rng.uniform(0.5, 2, ranks).tolist()),
        topology=topology,
    )
    options = Options(
        **{
            "transport": draw(st.sampled_from(list(TRANSPORTS))),
            "objective": draw(st.sampled_from(OBJECTIVES)),
            "replica_choice": draw(st.sampled_from(["min-nodes", "local-first", "uniform"])),
            "balance_weight": draw(st.sampled_from([0.0, 0.7])),
            "busy_share": draw(st.sampled_from([0.0, 0.5, 1.0])),
        }
        | fixed
    )
    problem = random_problem(8, 2, cluster, num_tokens=20, seed=int(rng.integers(1000)), options=options)
    return problem, random_map(problem, rng)


def random_map(problem: LayerProblem, rng: np.random.Generator) -> np.ndarray:
    """A map whose ranks hold no expert twice: shuffled until it is one."""
    extra = rng.permutation(8)[: problem.num_redundant]
    while True:
        row = rng.permutation(np.concatenate([np.arange(8), extra])).astype(np.int32)
        if all(len(set(held)) == len(held) for held in row.reshape(problem.cluster.num_ranks, -1).tolist()):
            return row


@settings(max_examples=60)
@given(case=problems())
def test_sends_and_objective(case: tuple[LayerProblem, np.ndarray]) -> None:
    """Sends are the price of every copy by enumeration; the objective adds what the options let count."""
    problem, row = case
    cluster, options, score = problem.cluster, problem.options, problem.score(row)
    layout = Map(tuple(row.tolist()), cluster.num_nodes, cluster.gpus_per_node, cluster.slots_per_gpu)
    sets = [
        tuple(ids) for ids, times in zip(problem.sets_UK.tolist(), problem.count_U, strict=True) for _ in range(times)
    ]
    links = layer_links(layout, sets, [-1] * len(sets), options.replica_choice, options.transport, cluster)
    price = sum(map(sum, links))
    assert score.sends == pytest.approx(price, abs=1e-9)
    busiest = cluster.num_nodes * max(sum(column) for column in zip(*links, strict=True))
    share, one_copy = problem.busy_share, problem.num_redundant == 0
    assert score.paid_sends == pytest.approx((1 - share) * price + share * busiest, abs=1e-9)
    few = cluster.num_nodes <= 4 and options.transport == "node" and options.replica_choice.startswith("min-nodes")
    counts = options.objective != "balance" and options.transport in ("node", "rank") and (one_copy or few)
    assert share == (options.busy_share if counts else 0)
    assert score.busiest_sends == pytest.approx(busiest, abs=1e-9)
    if options.objective == "balance" or options.transport == "allgather":
        assert (problem.send_price, problem.balance_price) == (0, 1)
        assert score.objective == score.expected_imbalance
    else:
        assert problem.send_price == 1
        assert score.objective == pytest.approx(score.paid_sends + problem.balance_price * score.expected_imbalance)
        if options.objective == "locality":
            assert problem.balance_price == options.balance_weight


@settings(max_examples=40)
@given(case=problems(objective="time", transport="rank"), seed=st.integers(0, 2**32))
def test_objective_time_is_the_modelled_step_time(case: tuple[LayerProblem, np.ndarray], seed: int) -> None:
    """Where the expected imbalance is that of the exact loads and weights are read at once, two maps differ in both by
    one constant factor."""
    problem, row = case
    problem = replace(
        problem, load_BE=problem.load_BE[:1], cluster=replace(problem.cluster, memory_gbps=1e12, copy_us=0.5)
    )
    rows = (row, random_map(problem, np.random.default_rng(seed)))
    scores = [problem.score(one) for one in rows]
    experts = np.array(float(problem.cluster.slots_per_gpu))
    times = []
    for score in scores:
        load = np.array(256 * problem.top_k * score.imbalance)
        copies = np.array(256 * score.paid_sends)
        times_6 = term_times_us(problem.cluster, Work(busiest=copies, copies=copies, load=load, experts=experts))
        assert times_6[Term.COMPUTE] > 0
        times.append(float(times_6.sum()))
    send_us = 256 * ((problem.cluster.dispatch_bytes + problem.cluster.combine_bytes) * 8 / 400e3 + 0.5)
    assert times[1] - times[0] == pytest.approx(send_us * (scores[1].objective - scores[0].objective), abs=1e-6)


@settings(max_examples=40)
@given(case=problems())
def test_caps(case: tuple[LayerProblem, np.ndarray]) -> None:
    """A map is feasible if it is within every cap that is given: at its own imbalance, and not a little below."""
    problem, row = case
    score, cluster = problem.score(row), problem.cluster
    assert score.feasible
    speed_N = cluster.speed_G().reshape(cluster.num_nodes, -1).sum(axis=1) / cluster.num_ranks
    if problem.num_redundant == 0:
        load_N = problem.load_E[row].reshape(cluster.num_nodes, -1).sum(axis=1)
        assert score.node_imbalance == pytest.approx((load_N / speed_N).max())
    assert score.node_imbalance <= score.imbalance + 1e-9
    for name, value in (("max_imbalance", score.imbalance), ("max_node_imbalance", score.node_imbalance)):
        for cap, feasible in ((value, True), (value - 1e-6, False)):
            if cap >= 1:
                capped = replace(problem, options=replace(problem.options, **{name: cap}))
                assert capped.score(row).feasible == feasible, (name, cap)
                assert f"{name}={cap}" == capped.options.caps


@pytest.mark.parametrize(
    "options",
    [
        Options(),
        Options(objective="time"),
        Options(objective="balance"),
        Options(transport="allgather"),
        Options(transport="allgather", objective="time"),
    ],
    ids=str,
)
def test_every_objective_looks_at_resampled_requests(options: Options, tmp_path: Any, write_trace: Any) -> None:
    """The exact loads first; where balance alone counts, that of each domain last."""
    workload = count(open_trace(write_trace(tmp_path).folder))
    domain_QD = np.arange(len(workload.profile_key_Q))[:, None] % 3 == np.arange(3)
    problem, known = (
        layer_problem(workload, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2), options, 0, domain_QD=domains)
        for domains in (None, domain_QD)
    )
    assert len(problem.load_BE) > 1
    np.testing.assert_allclose(problem.load_E, workload.load_LE[0] / workload.load_LE[0].sum())
    np.testing.assert_allclose(known.load_BE.sum(axis=1), 1)
    if options.sends_count:
        np.testing.assert_array_equal(known.load_BE, problem.load_BE)
    else:
        np.testing.assert_array_equal(known.load_BE[:-3], problem.load_BE)
        for d, row_E in enumerate(known.load_BE[-3:]):
            load_E = workload.profile_QLE[domain_QD[:, d], 0].sum(axis=0)
            np.testing.assert_allclose(row_E, load_E / load_E.sum())
