"""Going through all maps finds what brute force finds, in every kind of objective."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.errors import InfeasibleError
from placement.solvers.auto import Auto
from placement.solvers.exact.exhaustive import Exhaustive, all_ways
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.testing.problems import brute_force, planted_problem, random_problem


@st.composite
def single_copy_problems(draw: st.DrawFn) -> LayerProblem:
    num_experts, nodes, gpus = draw(st.sampled_from([(4, 2, 2), (6, 3, 1), (6, 2, 1), (4, 1, 2), (6, 1, 3), (4, 2, 1)]))
    slots = num_experts // (nodes * gpus)
    transport = draw(st.sampled_from(["node", "rank", "assignment", "allgather"]))
    speeds = draw(st.just(()) | st.tuples(*[st.sampled_from([1.0, 2.0])] * (nodes * gpus)))
    return random_problem(
        num_experts,
        2,
        Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, gpu_speeds=speeds),
        num_tokens=draw(st.integers(1, 60)),
        skew=draw(st.sampled_from([0.0, 0.5, 2.0])),
        seed=draw(st.integers(0, 10_000)),
        options=Options(
            balance_weight=draw(st.sampled_from([0.0, 0.5, 2.0])),
            busy_share=draw(st.sampled_from([0.0, 0.5, 1.0])),
            transport=transport,
            objective=draw(st.sampled_from(["locality", "balance"])),
        ),
    )


@settings(max_examples=80, deadline=None)
@given(single_copy_problems())
def test_finds_the_optimum(problem: LayerProblem) -> None:
    """Every transport and objective, unequal speeds: no map is better, and the bound says so."""
    optimum, _ = brute_force(problem)
    solution = Exhaustive().solve_layer(problem)
    assert solution.status == "optimal"
    assert problem.score(solution.phy2log_P).objective == pytest.approx(optimum, abs=1e-9)
    assert solution.bound == pytest.approx(optimum, abs=1e-9)


@pytest.mark.parametrize(("kinds", "size", "ways"), [([0, 0, 0, 0], 2, 105), ([0, 0, 0], 3, 280), ([0, 1], 2, 6)])
def test_every_way_once(kinds: list[int], size: int, ways: int) -> None:
    """As many as there are, all different, each with `size` items a unit, however alike units are named."""
    found = all_ways(tuple(kinds), size)
    assert len(found) == ways
    assert len({row.tobytes() for row in found}) == ways
    assert all(np.bincount(row).tolist() == [size] * len(kinds) for row in found)
    parts = {tuple(sorted((kinds[x], *np.flatnonzero(row == x)) for x in range(len(kinds)))) for row in found}
    assert len(parts) == ways


def test_auto_proves_models_of_few_experts() -> None:
    """Mixtral (8 experts, top-2) on every shape of 8 slots, and 16 experts on two nodes, end with gap 0."""
    for num_experts, top_k, shape in ((8, 2, (4, 2, 1)), (8, 2, (4, 1, 2)), (8, 2, (2, 4, 1)), (16, 4, (2, 4, 2))):
        cluster = Cluster(num_nodes=shape[0], gpus_per_node=shape[1], slots_per_gpu=shape[2])
        problem = random_problem(num_experts, top_k, cluster, num_tokens=1000, bootstraps=16)
        solution = Auto().solve_layer(problem)
        assert solution.status == "optimal"
        assert solution.bound == pytest.approx(problem.score(solution.phy2log_P).objective, rel=1e-9)


def test_caps_are_kept_or_proven_impossible() -> None:
    """The best map within the cap, which costs sends; below what any map has it is InfeasibleError."""
    cluster = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=4)
    problem, _ = planted_problem(8, 2, cluster, seed=1, options=Options(balance_weight=0.0))
    free = problem.score(Exhaustive().solve_layer(problem).phy2log_P)
    cap = 1 + (free.imbalance - 1) / 2
    for name in ("max_imbalance", "max_node_imbalance"):
        capped = replace(problem, options=Options(balance_weight=0.0, **{name: cap}))  # type: ignore[arg-type]
        score = capped.score(Exhaustive().solve_layer(capped).phy2log_P)
        assert score.feasible
        assert score.objective > free.objective
    skewed = random_problem(8, 2, cluster, skew=2.0, options=Options(max_imbalance=1.0))
    with pytest.raises(InfeasibleError, match=r"max_imbalance=1.0 is proven impossible"):
        Exhaustive().solve_layer(skewed)


def test_what_is_too_much_is_refused() -> None:
    """In words: 16 experts on 4 nodes can be shared out in 2,627,625 ways."""
    large = random_problem(16, 2, Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=4))
    assert "2627625 ways" in str(Exhaustive().unsupported(large))
    redundant = random_problem(4, 2, Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=3))
    assert "redundant" in str(Exhaustive().unsupported(redundant))
