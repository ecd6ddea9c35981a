"""Sets of fewer than K experts, as solvers are given them; the contract suite holds every solver to brute force."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement import Cluster, Options, count, evaluate, open_trace, solve
from placement.bounds.layer_bound import sends_bound
from placement.bounds.set_sizes import by_size, set_sizes
from placement.cost.step_time import balance_in_sends
from placement.cost.transports import TRANSPORTS
from placement.solvers import get_solver
from placement.solvers.annealing.anneal_common import incidence
from placement.solvers.layer_problems import layer_problem
from placement.solvers.mixtures import Mixtures
from placement.testing.problems import brute_force, make_problem, random_problem

ONE_COPY = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
REDUNDANT = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=3)
PROBLEMS = st.builds(
    random_problem,
    st.just(8),
    st.integers(1, 4),
    st.just(ONE_COPY),
    num_tokens=st.integers(1, 30),
    lacking=st.sampled_from([0.0, 0.2, 0.7, 1.0]),
    seed=st.integers(0, 9999),
)


def members(ids: list[int]) -> list[int]:
    return [e for e in ids if e >= 0]


@given(PROBLEMS)
def test_sets_by_size(problem: Any) -> None:
    """Every set that has experts is in the group of its size, with all of them; empty ones are in none."""
    sets = problem.sets_UK.tolist()
    assert set_sizes(problem.sets_UK).tolist() == [len(members(ids)) for ids in sets]
    seen = {}
    for rows, sets_RK in by_size(problem.sets_UK):
        seen |= dict(zip(rows.tolist(), sets_RK.tolist(), strict=True))
    assert seen == {u: members(ids) for u, ids in enumerate(sets) if members(ids)}


@given(PROBLEMS, st.booleans())
def test_incidence_lists_no_place_that_is_lacking(problem: Any, alone: bool) -> None:
    """An expert's sets, a pair's sets and assignments on their own are those of the members, counted one by one."""
    inc = incidence(problem, 8, alone=alone)
    held = Counter[tuple[int, ...]]()
    for ids, number in zip(problem.sets_UK.tolist(), problem.count_U.tolist(), strict=True):
        for size in (1,) if alone else (1, 2):
            for group in combinations(members(ids), size):
                held[group] += number
    found = Counter[tuple[int, ...]]()
    for e in range(8):
        found[e,] = int(inc.count_U[inc.expert_sets[inc.expert_ptr[e] : inc.expert_ptr[e + 1]]].sum())
        for other in range(e + 1, 8):
            row = e * 9 + other
            found[e, other] = int(inc.count_U[inc.pair_sets[inc.pair_ptr[row] : inc.pair_ptr[row + 1]]].sum())
    assert +found == held


@given(PROBLEMS)
def test_prices_take_the_mean_size(problem: Any) -> None:
    """A unit of imbalance costs the step as many experts as tokens visit, not as many as they could."""
    timed = replace(problem, options=Options(objective="time"))
    tokens = int(problem.count_U.sum())
    visits = sum(n * len(members(ids)) for ids, n in zip(problem.sets_UK.tolist(), problem.count_U, strict=True))
    assert timed.assignments == pytest.approx(visits / tokens)
    assert timed.balance_price == pytest.approx(balance_in_sends(ONE_COPY, visits / tokens))


@pytest.mark.parametrize("transport", TRANSPORTS)
@pytest.mark.parametrize("solver", ["exhaustive", "matching", "ilp", "auto"])
def test_optima_are_those_of_brute_force(solver: str, transport: str) -> None:
    """Not only is `optimal` true where a prover says so: on small layers the provers do say so."""
    two_a_node = Cluster(num_nodes=3, gpus_per_node=2, slots_per_gpu=1)
    proven = 0
    for seed in range(6):
        busy = Options().busy_share if solver != "matching" else 0.0  # it knows the fewest sends alone
        options = Options(transport=transport, objective=("locality", "time")[seed % 2], busy_share=busy)
        lacking = (0.1, 0.4, 0.8)[seed % 3]
        problem = random_problem(6, 3, two_a_node, num_tokens=40, lacking=lacking, seed=seed, options=options)
        if get_solver(solver).unsupported(problem) is not None:
            continue
        solution = get_solver(solver).solve_layer(problem)
        optimum, _ = brute_force(problem)
        assert solution.status == "optimal"
        assert problem.score(solution.phy2log_P).objective == pytest.approx(optimum, abs=1e-6)
        assert solution.bound is not None and solution.bound <= optimum + 1e-9
        proven += 1
    assert proven == 6 or transport in ("rank", "assignment")


@pytest.mark.parametrize("solver", ["anneal", "auto"])
@pytest.mark.parametrize("cluster", [ONE_COPY, REDUNDANT], ids=["one copy", "redundant"])
def test_places_beyond_all_sets_change_nothing(solver: str, cluster: Cluster) -> None:
    """A layer of smaller top-k than the model's is solved as if the model had that top-k, bound and all."""
    rng = np.random.default_rng(2)
    ids_TK = np.argsort(rng.random((80, 8)), axis=1)[:, :2]
    wider_TK = np.concatenate([ids_TK, np.full((80, 3), -1)], axis=1)
    answers = [
        get_solver(solver).solve_layer(make_problem(ids, cluster, num_experts=8, options=Options(work_limit=3_000)))
        for ids in (ids_TK, wider_TK)
    ]
    np.testing.assert_array_equal(answers[0].phy2log_P, answers[1].phy2log_P)
    assert (answers[0].bound, answers[0].status) == (answers[1].bound, answers[1].status)


def test_bound_of_sends_mixes_sizes() -> None:
    """A single expert is at home by luck alone, and so is a large set that fits on a node: half a send for each token
    that has experts, none for the others."""
    single = np.array([[0, -1, -1, -1], [5, -1, -1, -1]])
    both = np.concatenate([single, [[0, 1, 2, 3], [4, 5, 6, 7], [-1, -1, -1, -1]]])
    assert sends_bound(single, np.array([1, 1]), 8, 2, 4) == pytest.approx(0.5, abs=1e-6)
    assert sends_bound(both, np.array([1, 1, 1, 1, 4]), 8, 2, 4) == pytest.approx(0.25, abs=1e-3)
    for slots in (4, 5):
        assert sends_bound(np.full((2, 4), -1), np.array([3, 4]), 8, 2, slots) == 0


def test_mixtures_know_short_sets() -> None:
    """What a mixture sends is the weighted mean of what its parts send, whatever the sizes of their sets."""
    parts = [random_problem(8, 3, ONE_COPY, lacking=lacking, seed=5) for lacking in (0.0, 0.4)]
    weight_W = np.array([0.25, 0.75])
    mixture = Mixtures(parts[1], parts).problem(weight_W, seed=1)
    for row in (np.arange(8, dtype=np.int32), np.array([0, 2, 4, 6, 1, 3, 5, 7], dtype=np.int32)):
        assert mixture.score(row).sends == pytest.approx(weight_W @ [part.score(row).sends for part in parts], abs=1e-5)


@pytest.mark.parametrize("redundant", [0, 4])
def test_few_lacking_places_hardly_change_the_map(write_trace: Any, tmp_path: Path, redundant: int) -> None:
    """3% of the places gone, the map of what is left costs within 1% of the full trace's map, on the full trace."""
    shape = {"num_layers": 2, "num_experts": 16, "top_k": 4, "tokens": 6000, "requests": 60, "spread": 1.5, "seed": 4}
    full, short = (
        open_trace(write_trace(tmp_path / name, **shape, short=share).folder)
        for name, share in (("full", None), ("short", 0.03))
    )
    assert len(short.requests) == len(full.requests)
    assert count(short).num_tokens == count(full).num_tokens
    cluster = Cluster.fit(16, num_nodes=4, gpus_per_node=1, redundant_experts=redundant)
    maps = [solve(trace, cluster, Options(bound="none"), holdout=0).placement for trace in (full, short)]
    one, other = evaluate(full, maps, cluster=cluster)
    assert other.sends_L.mean() == pytest.approx(one.sends_L.mean(), rel=0.01)
    costs = [on.sends_L.mean() + 1.5 * on.rank_imbalance_L().mean() for on in (one, other)]
    assert costs[1] == pytest.approx(costs[0], rel=0.01)


def test_a_layer_without_experts_is_solved(write_trace: Any, tmp_path: Path) -> None:
    """A problem of a layer that no token visits: nothing to send, nothing to prove, any map is even."""
    ids_LTK = np.stack([np.argsort(np.random.default_rng(0).random((50, 8)), axis=1)[:, :2], np.full((50, 2), -1)])
    trace = open_trace(write_trace(tmp_path / "trace", ids_LTK=ids_LTK, num_experts=8, short=0.0).folder)
    problem = layer_problem(count(trace), ONE_COPY, Options(), 1)
    assert problem.assignments == 0
    solution = solve(trace, ONE_COPY, Options(work_limit=2_000), holdout=0)
    assert solution.layers[1].status == "optimal"
    assert solution.train["auto"].sends_L[1] == 0
