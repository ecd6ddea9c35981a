"""Fronts of (moves, objective) against every map of tiny problems; budgets against every choice of points."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.core.placement import Placement
from placement.core.relabel import holds_GE, moved_P
from placement.core.resize import Resize
from placement.pipeline.move_budget import spend
from placement.pipeline.move_front import LayerInUse, Point, layer_front, point_of
from placement.solvers import get_solver
from placement.solvers.annealing.anneal import search_of
from placement.solvers.annealing.anneal_common import costs_of, incidence
from placement.solvers.annealing.anneal_single import anneal_single
from placement.solvers.eplb import Eplb
from placement.solvers.problem import LayerProblem, Score
from placement.testing.problems import all_maps, random_problem, tiny_problems

Row = npt.NDArray[np.int32]


def found(problem: LayerProblem, current_P: Row, **limits: int | None) -> list[Point]:
    problem = replace(problem, options=replace(problem.options, work_limit=4000, bound="none", **limits))
    solution = get_solver("auto").solve_layer(replace(problem, starts=(current_P,)))
    now = LayerInUse.of(current_P, problem.cluster, problem.num_experts)
    return layer_front(problem, now, point_of(problem, now, solution.phy2log_P, solution.solver))


def lowest_by_moves(problem: LayerProblem, current_P: Row) -> dict[int, float]:
    """The lowest objective of any map that is so many moves away, by trying all of them."""
    cluster, lowest = problem.cluster, {}
    for row in all_maps(problem.num_experts, cluster.num_ranks, cluster.slots_per_gpu):
        moves = int(moved_P(current_P, row, cluster).sum())
        lowest[moves] = min(lowest.get(moves, np.inf), problem.score(row).objective)
    return lowest


@pytest.mark.parametrize("redundant", [False, True])
@settings(max_examples=15)
@given(data=st.data())
def test_front_of_tiny_problems(redundant: bool, data: st.DataObject) -> None:
    """Every point is a sound map, moves what it says and gains over those before; none beats what is possible at all,
    and what one swap (2 moves; 1 where copies may be replaced) or any number of moves can gain is gained."""
    problem = data.draw(tiny_problems(redundant=redundant))
    cluster = problem.cluster
    current_P = Eplb().solve_layer(problem).phy2log_P
    points = found(problem, current_P, max_moves=cluster.num_slots)
    assert points[0].moves == 0 and np.array_equal(points[0].phy2log_P, current_P)
    for point, before in zip(points, [None, *points], strict=False):
        assert set(point.phy2log_P.tolist()) == set(range(problem.num_experts))
        assert point.moves == moved_P(current_P, point.phy2log_P, cluster).sum()
        assert point.score == problem.score(point.phy2log_P)
        assert before is None or (point.moves > before.moves and point.score.better_than(before.score))
    lowest = lowest_by_moves(problem, current_P)
    for most in range(cluster.num_slots + 1):
        possible = min(value for moves, value in lowest.items() if moves <= most)
        got = [point.score.objective for point in points if point.moves <= most][-1]
        assert got >= possible - 1e-9
        if most in (1 if redundant else 2, cluster.num_slots):
            assert got == pytest.approx(possible, abs=1e-9)


def test_fronts_are_nearly_the_best() -> None:
    """On small problems with copies and without, 95% of what is possible within 1 to 6 moves is gained."""
    possible = gained = 0.0
    for seed, slots in product(range(2), (2, 3)):
        cluster = Cluster(num_nodes=2, gpus_per_node=2 if slots == 2 else 1, slots_per_gpu=slots)
        num_experts = 5
        problem = random_problem(num_experts, 2, cluster, num_tokens=40, seed=seed)
        current_P = Eplb().solve_layer(random_problem(num_experts, 2, cluster, skew=1.0, seed=seed + 9)).phy2log_P
        points, lowest = found(problem, current_P, max_moves=99), lowest_by_moves(problem, current_P)
        for most in range(1, 7):
            possible += lowest[0] - min(value for moves, value in lowest.items() if moves <= most)
            gained += lowest[0] - [one.score.objective for one in points if one.moves <= most][-1]
    assert possible > 0.2
    assert 0.95 * possible <= gained <= possible + 1e-9


def test_fronts_of_resized_clusters_are_nearly_the_best() -> None:
    """From a map of 3 ranks to 4, with fewer slots, more or as many: the front begins at the fewest copies of any map,
    and 95% of what further copies can gain is gained."""
    possible = gained = 0.0
    model = Model(name="m", layer_ids=(0,), num_experts=5, top_k=2)
    for seed, (old_slots, slots) in product(range(2), ((2, 2), (3, 2), (2, 3))):
        cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=slots)
        problem = random_problem(5, 2, cluster, num_tokens=40, seed=seed)
        before = Cluster(num_nodes=1, gpus_per_node=3, slots_per_gpu=old_slots)
        old_P = Eplb().solve_layer(random_problem(5, 2, before, skew=1.0, seed=seed + 9)).phy2log_P
        change = Resize.of(Placement(model=model, **before.sizes(), phy2log_LP=old_P[None]), cluster)
        held_GE = change.held_GE(0)
        now = LayerInUse(phy2log_P=change.start(problem.load_E[None]).phy2log_LP[0], held_GE=held_GE)
        options = replace(problem.options, work_limit=4000, bound="none", max_moves=99)
        problem = replace(problem, options=options, starts=(now.phy2log_P,))
        solution = get_solver("auto").solve_layer(problem)
        points = layer_front(problem, now, point_of(problem, now, solution.phy2log_P, solution.solver))
        lowest: dict[int, float] = {}
        for row in all_maps(5, 4, slots):
            moves = int((~held_GE[cluster.rank_of_slot_P(), row]).sum())
            lowest[moves] = min(lowest.get(moves, np.inf), problem.score(row).objective)
        fewest = int(change.fewest_copies_L()[0])
        assert points[0].moves == fewest == min(lowest)
        for most in range(fewest, fewest + 6):
            best = min(value for moves, value in lowest.items() if moves <= most)
            got = [one.score.objective for one in points if one.moves <= most][-1]
            assert got >= best - 1e-9
            worst = problem.score(now.phy2log_P).objective
            possible, gained = possible + worst - best, gained + worst - got
    assert possible > 0.2
    assert 0.95 * possible <= gained <= possible + 1e-9


@pytest.mark.parametrize("slots", [4, 5])
def test_limits_only_cut(slots: int) -> None:
    """A limit gives the points of a search without one up to it, so more moves are never worse."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=slots)
    problem = random_problem(16, 3, cluster, seed=3)
    current_P = Eplb().solve_layer(random_problem(16, 3, cluster, seed=4)).phy2log_P
    whole = found(problem, current_P, max_moves=100)
    assert len(whole) > 4
    for limits in ({"max_moves": 5}, {"max_moves_per_layer": 5}, {"max_moves": 5, "max_moves_per_layer": 9}):
        cut = found(problem, current_P, **limits)
        want = [point for point in whole if point.moves <= 5]
        assert [(p.moves, p.score) for p in cut] == [(p.moves, p.score) for p in want]
    assert len(found(problem, current_P, max_moves=0)) == 1


@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), price=st.sampled_from([0.0, 0.01, 0.2]), redundant=st.booleans())
def test_kernels_count_moves(seed: int, price: float, redundant: bool) -> None:
    """The cost that the annealing kernels tell is the objective and the price of every move of the map they leave."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=4 if redundant else 3)
    problem = random_problem(12, 3, cluster, num_tokens=100, seed=seed)
    current_P = Eplb().solve_layer(random_problem(12, 3, cluster, seed=seed + 1)).phy2log_P
    inc, costs = incidence(problem, 12), costs_of(problem, 12)
    costs = costs._replace(stay_GE=np.where(holds_GE(current_P, cluster, 12), price, 0.0))
    row = Eplb().solve_layer(problem).phy2log_P.copy()
    cost = search_of(problem)(row, inc, costs, 0.05, 0.001, 500, np.uint64(seed))
    moves = int(moved_P(current_P, row, cluster).sum())
    assert cost == pytest.approx(problem.score(row).objective + price * moves, abs=1e-9)


def test_a_high_price_keeps_the_current_map() -> None:
    """Where a move costs more than anything it can gain, nothing moves."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=4)
    problem = random_problem(16, 3, cluster, seed=1)
    current_P = np.arange(16, dtype=np.int32)
    costs = costs_of(problem, 16)._replace(stay_GE=np.where(holds_GE(current_P, cluster, 16), 100.0, 0.0))
    row = current_P.copy()
    anneal_single(row, incidence(problem, 16), costs, 0.05, 0.001, 2000, np.uint64(0))
    assert np.array_equal(row, current_P)


@st.composite
def fronts(draw: st.DrawFn) -> list[list[Point]]:
    """Up to four layers whose objectives fall with their moves; some of their maps break a cap."""
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        steps = draw(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 5)), max_size=4))
        feasible_from = draw(st.integers(0, len(steps)))
        moves, objective, layer = 0, 50.0, []
        for index, (step, gain) in enumerate([(0, 0), *steps]):
            moves, objective = moves + step, objective - gain
            score = Score(
                objective=objective,
                sends=0.0,
                busiest_sends=0.0,
                paid_sends=0.0,
                imbalance=1.0 if index >= feasible_from else 2.0,
                node_imbalance=1.0,
                expected_imbalance=1.0,
                excess=0.0 if index >= feasible_from else 1.0,
            )
            layer.append(Point(moves=moves, score=score, phy2log_P=np.zeros(1, dtype=np.int32), solver="any"))
        layers.append(layer)
    return layers


@settings(max_examples=100)
@given(layers=fronts(), budget=st.one_of(st.none(), st.integers(0, 20)))
def test_budget_is_spent_best(layers: list[list[Point]], budget: int | None) -> None:
    """Of all choices within the budget: as few layers beyond their cap as can be, then the lowest sum of objectives."""
    chosen = spend(layers, budget)
    assert all(any(point is one for one in layer) for point, layer in zip(chosen, layers, strict=True))
    assert budget is None or sum(point.moves for point in chosen) <= budget
    allowed = [
        points for points in product(*layers) if budget is None or sum(point.moves for point in points) <= budget
    ]

    def cost(points: tuple[Point, ...]) -> tuple[int, float]:
        return sum(not one.score.feasible for one in points), sum(one.score.objective for one in points)

    assert cost(tuple(chosen)) == min(map(cost, allowed))
