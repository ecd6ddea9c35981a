"""A map in force may hold an expert several times on a GPU, as EPLB makes them: it is changed from as it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Cluster, Model, Placement
from placement.core.migration import migration_plan
from placement.core.placement import wasted_P
from placement.core.relabel import moved_P, relabel
from placement.cost.choices import REPLICA_CHOICES
from placement.pipeline.layer_answer import solve_layer
from placement.pipeline.move_front import LayerInUse
from placement.solvers.moves import fill_wasted
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.testing.problems import random_problem

CLUSTER = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=4)
EXPERTS = 11
IN_FORCE = np.array([0, 1, 1, 2, 3, 4, 3, 3, 5, 6, 7, 0, 8, 9, 10, 0], dtype=np.int32)  # slots 2, 6 and 7 are wasted
NOW = LayerInUse.of(IN_FORCE, CLUSTER, EXPERTS)


def problem_of(**options: Any) -> LayerProblem:
    chosen = Options(work_limit=2000, bound="none", **options)
    return random_problem(EXPERTS, 3, CLUSTER, seed=3, skew=1.0, options=chosen)


def test_wasted_slots_are_filled_by_the_hottest_experts_that_the_gpu_lacks() -> None:
    """One move each, and nothing else moves."""
    load_E = np.array([9.0, 1, 1, 1, 1, 8, 1, 7, 1, 1, 1])
    filled = fill_wasted(IN_FORCE, 4, load_E)
    assert not wasted_P(filled, 4).any()
    assert np.flatnonzero(filled != IN_FORCE).tolist() == [2, 6, 7]
    assert filled[[2, 6, 7]].tolist() == [5, 7, 5] or filled[[2, 6, 7]].tolist() == [5, 7, 0]
    assert moved_P(IN_FORCE, filled, CLUSTER).sum() == 3


@pytest.mark.parametrize("choice", REPLICA_CHOICES)
@pytest.mark.parametrize("max_moves", [0, 1, 2, 3, 5])
def test_a_budget_of_moves_holds_and_wasted_slots_are_used_first(choice: str, max_moves: int) -> None:
    """With few moves the map keeps what it must of its wasted slots, and is never worse than the one in force."""
    problem = problem_of(max_moves=max_moves, replica_choice=choice)
    points = solve_layer(problem, 0, NOW).points
    assert points[0].moves == 0
    assert np.array_equal(points[0].phy2log_P, IN_FORCE)
    for point in points:
        assert point.moves == moved_P(IN_FORCE, point.phy2log_P, CLUSTER).sum() <= max_moves
        assert wasted_P(point.phy2log_P, 4).sum() <= 3
        assert not point.score.objective > points[0].score.objective
    if choice not in ("min-nodes-balanced", "min-nodes-step"):  # which may fare better by chance with fewer copies
        assert wasted_P(points[-1].phy2log_P, 4).sum() <= max(3 - max_moves, 0)


@pytest.mark.parametrize("solver", ["auto", "anneal", "eplb", "balance"])
def test_without_a_budget_no_slot_is_wasted(solver: str) -> None:
    """No solver of ours makes such a map, whatever it starts from."""
    points = solve_layer(problem_of(solver=solver), 0, NOW).points
    assert not any(wasted_P(point.phy2log_P, 4).any() for point in points)


def row_with_waste(rng: np.random.Generator) -> np.ndarray:
    """Every expert somewhere; the other slots hold any expert."""
    more = rng.integers(0, EXPERTS, CLUSTER.num_slots - EXPERTS)
    return rng.permutation(np.concatenate([np.arange(EXPERTS), more])).astype(np.int32)


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6))
def test_plans_between_maps_with_wasted_slots(seed: int) -> None:
    """Copies lead from either map to the other; only what a GPU lacks is a move; relabelled maps hold the same."""
    rng = np.random.default_rng(seed)
    old, new = row_with_waste(rng), row_with_waste(rng)
    model = Model(name="m", layer_ids=(0,), num_experts=EXPERTS, top_k=2)
    maps = [Placement(model=model, **CLUSTER.sizes(), phy2log_LP=row[None]) for row in (old, new)]
    plan = migration_plan(*maps, CLUSTER)
    row = old.copy()
    for slot, expert, source in zip(plan.slot_M, plan.expert_M, plan.source_M, strict=True):
        assert expert in old.reshape(4, -1)[source]
        row[slot] = expert
    assert np.array_equal(row, new)
    assert plan.num_moves == moved_P(old, new, CLUSTER).sum()
    again = relabel(old, new, CLUSTER)
    held = [sorted(map(tuple, np.sort(one.reshape(4, -1), axis=1).tolist())) for one in (new, again)]
    assert held[0] == held[1]
    assert np.array_equal(relabel(old, old, CLUSTER), old)
    assert replace(maps[0], phy2log_LP=again[None]).wasted_LP().sum() == maps[1].wasted_LP().sum()
