"""The tight lower bound is below every map, above the quick bound, and close to what search finds."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from exact_duals import one_copy_dual

from placement.bounds.lagrangian_bound import Multipliers, lagrangian_bound
from placement.bounds.layer_bound import smallest_imbalance
from placement.bounds.node_range import node_range
from placement.bounds.set_partitions import set_partitions
from placement.bounds.spectral_bound import Pieces, bound_steps, spectral_bound
from placement.core.cluster import Cluster
from placement.solvers.annealing.anneal import Anneal
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.solvers.prove import objective_bound
from placement.testing.problems import brute_force, planted_problem, random_problem

EPS = 1e-12  # rounding of the score itself
SHAPES = [  # experts, top-k, nodes, GPUs a node, slots a GPU
    (4, 2, 2, 1, 2),
    (6, 2, 3, 1, 2),
    (6, 3, 2, 1, 3),
    (8, 4, 2, 1, 4),
    (4, 2, 4, 1, 1),
    (6, 3, 2, 3, 1),
    (6, 1, 3, 1, 2),
    (6, 4, 3, 1, 2),
    (2, 1, 2, 1, 1),
    (8, 3, 4, 1, 2),
    (10, 9, 2, 1, 5),
]


def pieces_of(problem: LayerProblem) -> Pieces:
    cluster = problem.cluster
    floor_B = np.array([smallest_imbalance(load_E, cluster) for load_E in problem.load_BE])
    return Pieces(
        sets_UK=problem.sets_UK,
        weight_U=problem.count_U / problem.count_U.sum(),
        load_BE=problem.load_BE,
        price_B=np.full(len(floor_B), problem.options.balance_weight / len(floor_B)),
        floor_B=floor_B,
        num_nodes=cluster.num_nodes,
        slots_per_node=cluster.slots_per_node,
        fastest_node=float(cluster.speed_G().reshape(cluster.num_nodes, -1).mean(axis=1).max()),
    )


def tiny(seed: int, price: float) -> LayerProblem:
    """Of two in five some sets are short, or empty."""
    num_experts, top_k, nodes, gpus, slots = SHAPES[seed % len(SHAPES)]
    speeds = tuple(1.0 + 0.3 * g for g in range(nodes * gpus)) if seed % 4 == 0 else ()
    return random_problem(
        num_experts,
        top_k,
        Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, gpu_speeds=speeds),
        num_tokens=[1, 5, 60][seed % 3],
        skew=[0.0, 0.7, 2.0][seed // 7 % 3],
        lacking=[0.0, 0.0, 0.0, 0.1, 0.5][seed % 5] * (seed % 3 > 0),
        seed=seed,
        options=Options(balance_weight=price, busy_share=0),
    )


def small(price: float = 0.0) -> Pieces:
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=4)
    return pieces_of(random_problem(16, 4, cluster, options=Options(balance_weight=price), seed=3))


@pytest.mark.parametrize("price", [0.0, 0.5, 3.0])
def test_bound_is_below_the_optimum_and_not_below_the_quick_bound(price: float) -> None:
    """Shapes, speeds and skews at random, against brute force; early iterates count as much as late ones."""
    gaps = []
    for seed in range(40):
        problem = tiny(seed, price)
        pieces = pieces_of(problem)
        optimum, _ = brute_force(problem)
        found, _ = lagrangian_bound(pieces, iterations=[3, 40, 200][seed // 10 % 3])
        assert found <= optimum + EPS, seed
        assert found >= spectral_bound(pieces, bound_steps(problem.num_experts)), seed
        gaps.append(optimum - found)
    if price == 0:
        assert np.mean(gaps) < 0.02


def test_bound_is_that_of_its_multipliers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed once more in fractions and long double: what rounding may have added is taken off, and little more."""
    monkeypatch.setattr(
        "placement.bounds.same_node_relaxation.MOST_EXPERTS_WITH_TRIANGLES", 0
    )  # not in the other computation
    climbed = 0
    for seed in range(2 * len(SHAPES)):
        pieces = pieces_of(tiny(seed, [0.0, 1.5][seed % 2]))
        if pieces.load_BE.shape[1] > 8:
            continue
        found, at = lagrangian_bound(pieces, iterations=80)
        true = one_copy_dual(pieces, at)
        if found > spectral_bound(pieces, bound_steps(pieces.load_BE.shape[1])):
            climbed += 1
            assert found <= true
            assert found == pytest.approx(float(true), abs=1e-7)
    assert climbed >= 5


@pytest.mark.parametrize("cap", [1.0, 1.05, 1.3])
def test_bound_under_a_cap_is_below_every_map_within_it(cap: float) -> None:
    """One GPU a node, so the cap on ranks is one on nodes: against the best of all maps that keep it, if any does."""
    higher = 0
    for seed in range(12):
        cluster = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=3)
        options = Options(balance_weight=0.0, max_imbalance=cap, bound="tight")
        problem = random_problem(6, 3, cluster, num_tokens=[2, 20, 60][seed % 3], seed=seed, options=options)
        within = [
            problem.score(np.array([*half, *(set(range(6)) - set(half))], dtype=np.int32))
            for half in itertools.combinations(range(6), 3)
        ]
        optimum = min((score.sends for score in within if score.feasible), default=np.inf)
        free = lagrangian_bound(pieces_of(problem), iterations=60)[0]
        capped = lagrangian_bound(pieces_of(problem)._replace(most_node=(cap + 2e-9) / 2), iterations=60)[0]
        assert capped <= optimum + EPS, seed
        higher += capped > free + 0.01
    assert objective_bound(problem) <= optimum + EPS
    assert higher >= (1 if cap > 1.2 else 3)


def test_range_of_a_node() -> None:
    """Four nodes of at most 0.3: three at the cap leave 0.1 for the last, and squares are largest there."""
    capped = node_range(small()._replace(most_node=0.3))
    assert capped == pytest.approx((0.1, 0.3, 0.28), abs=1e-7)
    assert node_range(small()) == (0.0, 1.0, 1.0)


def test_any_multipliers_give_a_bound() -> None:
    """Nothing rests on the climb: nonsense is a bound too, if a bad one, also right after it is made valid."""
    rng = np.random.default_rng(0)
    for seed in range(30):
        problem = tiny(seed, [0.0, 2.0][seed % 2])
        pieces = pieces_of(problem)
        optimum, _ = brute_force(problem)
        _, good = lagrangian_bound(pieces, iterations=60)
        thetas = tuple(theta_UC + rng.normal(0, 0.1, theta_UC.shape) for theta_UC in good.thetas)
        nonsense = Multipliers(thetas, *(values + rng.normal(0, 0.1, values.shape) for values in good[1:]))
        found, _ = lagrangian_bound(pieces, iterations=30, start=nonsense)
        assert found <= optimum + EPS, seed


def test_sets_with_one_multiplier_give_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there are too many sets times partitions the sets take turns; with large K only their pairs are counted."""
    whole = [lagrangian_bound(pieces_of(tiny(seed, 0.5)), iterations=80)[0] for seed in range(14)]
    for name, value in (("MOST_CELLS", 40), ("MOST_TOP_K", 0)):
        monkeypatch.setattr(f"placement.bounds.token_sets.{name}", value)
        for seed in range(14):
            problem = tiny(seed, 0.5)
            found, _ = lagrangian_bound(pieces_of(problem), iterations=80)
            assert found <= brute_force(problem)[0] + EPS
            assert found <= whole[seed] + 0.02  # coarser, so hardly ever higher


def test_bound_is_close_to_what_search_finds() -> None:
    """Structure and strays: the quick bound leaves a gap, this one next to nothing."""
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=4)
    problem, _ = planted_problem(16, 4, cluster, stray=0.5, options=Options(balance_weight=0.0, busy_share=0), seed=1)
    found = problem.score(Anneal().solve_layer(problem).phy2log_P).objective
    quick = spectral_bound(pieces_of(problem), 80)
    tight, _ = lagrangian_bound(pieces_of(problem), iterations=500)
    assert quick < 0.995 * found
    assert 0.9999 * found < tight <= found + EPS


def test_bound_without_triangles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers of many experts leave the triangle inequalities out; entries of X above 1 are priced instead."""
    with_them, _ = lagrangian_bound(small(), iterations=150)
    monkeypatch.setattr("placement.bounds.same_node_relaxation.MOST_EXPERTS_WITH_TRIANGLES", 8)
    without, at = lagrangian_bound(small(), iterations=150)
    assert at.triangle_T.size == 0
    assert spectral_bound(small(), 80) < without <= with_them + 1e-3


def test_balance_is_priced() -> None:
    """With little to gain from sends the bound is that of balance, and more than the floor where loads clash."""
    without, _ = lagrangian_bound(small(), iterations=400)
    pieces = small(1.5)
    together, _ = lagrangian_bound(pieces, iterations=600)
    floor = float(pieces.price_B @ pieces.floor_B)
    assert together >= without + floor - 1e-3
    assert together > spectral_bound(pieces, 80) + 0.01


def test_same_answer_twice() -> None:
    """No random numbers, no clock."""
    first, at = lagrangian_bound(small(1.5), iterations=60)
    again, at_again = lagrangian_bound(small(1.5), iterations=60)
    assert first == again
    assert all(np.array_equal(one, other) for one, other in zip(at.thetas, at_again.thetas, strict=True))
    assert all(np.array_equal(one, other) for one, other in zip(at[1:], at_again[1:], strict=True))


def test_more_iterations_do_not_give_less() -> None:
    """The best is kept; and going on from multipliers never loses what they gave."""
    values = [lagrangian_bound(small(), iterations=n)[0] for n in (10, 50, 250)]
    assert values == sorted(values)
    value, at = lagrangian_bound(small(), iterations=100)
    further, _ = lagrangian_bound(small(), iterations=20, start=at)
    assert further >= value


def test_multipliers_of_another_problem_can_start() -> None:
    """What does not fit is not used: layers differ in their sets."""
    cluster = Cluster(num_nodes=4, gpus_per_node=1, slots_per_gpu=4)
    other = pieces_of(random_problem(16, 4, cluster, num_tokens=77, seed=9))
    _, at = lagrangian_bound(small(), iterations=30)
    value, found = lagrangian_bound(other, iterations=30, start=at)
    assert found.thetas[0].shape != at.thetas[0].shape
    assert value >= spectral_bound(other, bound_steps(16))


def test_deadline_is_kept() -> None:
    """A bound comes back even when there was no time at all."""
    began = time.monotonic()
    value, _ = lagrangian_bound(small(), iterations=10**7, deadline=began + 0.3)
    assert time.monotonic() - began < 2.0
    assert value > spectral_bound(small(), bound_steps(16))
    late, _ = lagrangian_bound(small(), deadline=began)
    assert late == spectral_bound(small(), bound_steps(16))


def test_slots_must_fit_the_experts() -> None:
    """All experts have a slot; with redundant experts no same-node matrix says what a node serves."""
    with pytest.raises(ValueError, match="cannot hold"):
        lagrangian_bound(small()._replace(slots_per_node=3))
    with pytest.raises(ValueError, match="price_B must be 0"):
        lagrangian_bound(small(1.5)._replace(slots_per_node=5))


def test_one_node_has_nothing_to_send() -> None:
    """And its loads are what they are."""
    problem = random_problem(4, 2, Cluster(num_nodes=1, gpus_per_node=2, slots_per_gpu=2))
    value, _ = lagrangian_bound(pieces_of(problem), iterations=20)
    assert value <= brute_force(problem)[0] + EPS


@pytest.mark.parametrize(
    ("top_k", "most_blocks", "largest", "count"),
    [(4, 4, 4, 15), (6, 6, 6, 203), (8, 8, 8, 4140), (4, 2, 2, 3), (3, 2, 3, 4)],
)
def test_set_partitions_are_all_there(top_k: int, most_blocks: int, largest: int, count: int) -> None:
    """Bell numbers, and small cases by hand: a partition left out would make the bound wrong."""
    parts_PJ = set_partitions(top_k, most_blocks, largest)
    assert len({tuple(sorted(row)) for row in parts_PJ.tolist()}) == len(parts_PJ) == count
    assert (parts_PJ.sum(axis=1) == 2**top_k - 1).all()
