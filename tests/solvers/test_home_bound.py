"""Bounds for given homes are below every map, are those of their multipliers, and say more than random homes do."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from exact_duals import one_copy_dual

from placement.bounds.lagrangian_bound import lagrangian_bound
from placement.bounds.layer_bound import sends_bound, smallest_imbalance
from placement.bounds.set_partitions import even_splits, home_splits
from placement.bounds.spectral_bound import Pieces, bound_steps, spectral_bound
from placement.core.cluster import Cluster
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.solvers.prove import objective_bound
from placement.testing.problems import all_maps, random_problem

EPS = 1e-12
ONE_COPY = [
    (4, 2, 2, 2),
    (6, 2, 3, 2),
    (6, 3, 2, 3),
    (6, 4, 3, 2),
    (4, 2, 4, 1),
    (6, 1, 3, 2),
    (8, 4, 2, 4),
    (6, 5, 2, 3),
]
COPIES = [(3, 2, 2, 2), (4, 3, 2, 3), (4, 2, 3, 2), (4, 3, 3, 2), (3, 2, 3, 2), (3, 3, 2, 2), (4, 2, 2, 3)]


def tiny(shape: tuple[int, int, int, int], seed: int, options: Options) -> LayerProblem:
    """Homes that go with the experts more or less; every third problem has random homes among them, some short sets."""
    num_experts, top_k, nodes, slots = shape
    rng = np.random.default_rng(seed)
    cluster = Cluster(num_nodes=nodes, gpus_per_node=1, slots_per_gpu=slots)
    tokens = [1, 6, 50][seed % 3]
    lacking = [0.0, 0.0, 0.0, 0.1, 0.5][seed % 5] if tokens > 1 else 0.0
    problem = random_problem(
        num_experts,
        top_k,
        cluster,
        num_tokens=tokens,
        skew=[0.0, 1.5][seed % 2],
        lacking=lacking,
        seed=seed,
        options=options,
    )
    sets_UK, count_U = problem.sets_UK, problem.count_U
    liked_U = np.maximum(sets_UK[:, 0], 0) * nodes // num_experts
    home_U = np.where(rng.random(len(sets_UK)) < seed % 4 / 4, liked_U, rng.integers(0, nodes, len(sets_UK)))
    # a set comes with several homes
    again = rng.integers(0, len(sets_UK), len(sets_UK) // 2)
    sets_UK, count_U = np.concatenate([sets_UK, sets_UK[again]]), np.concatenate([count_U, 1 + count_U[again] // 2])
    home_U = np.concatenate([home_U, (home_U[again] + 1) % nodes]).astype(np.int32)
    if seed % 3 == 2:
        home_U[rng.random(len(home_U)) < 0.4] = -1
    return replace(problem, sets_UK=sets_UK, count_U=count_U, home_U=home_U)


def sends_of(problem: LayerProblem, row: npt.NDArray[np.int32]) -> float:
    """By trying all covers: the fewest nodes beside the home that host what the home does not."""
    nodes = problem.cluster.num_nodes
    hosted = [set(part.tolist()) for part in np.split(row, nodes)]
    total = 0.0
    assert problem.home_U is not None
    for members, home, count in zip(problem.sets_UK.tolist(), problem.home_U, problem.count_U, strict=True):
        homes = range(nodes) if home < 0 else [home]
        total += count * np.mean([_fewest(set(members) - {-1} - hosted[h], hosted) for h in homes])
    return float(total / problem.count_U.sum())


def _fewest(needed: set[int], hosted: list[set[int]]) -> int:
    return next(
        r
        for r in range(len(hosted) + 1)
        if any(needed <= set().union(*chosen) for chosen in itertools.combinations(hosted, r))
    )


def optimum(problem: LayerProblem, cap: float = np.inf) -> float:
    """The best of all maps within the cap on nodes, each a node's set of experts."""
    cluster, price = problem.cluster, problem.balance_price
    best = np.inf
    for row in all_maps(problem.num_experts, cluster.num_nodes, cluster.slots_per_node):
        score = problem.score(row)
        if score.node_imbalance <= cap + 1e-9:
            best = min(best, sends_of(problem, row) + price * score.expected_imbalance)
    return best


def pieces_of(problem: LayerProblem) -> Pieces:
    cluster = problem.cluster
    floor_B = np.array([smallest_imbalance(load_E, cluster) for load_E in problem.load_BE])
    return Pieces(
        sets_UK=problem.sets_UK,
        weight_U=problem.count_U / problem.count_U.sum(),
        load_BE=problem.load_BE,
        price_B=np.full(len(floor_B), problem.balance_price / len(floor_B)),
        floor_B=floor_B,
        num_nodes=cluster.num_nodes,
        slots_per_node=cluster.slots_per_node,
        home_U=problem.home_U,
    )


@pytest.mark.parametrize("price", [0.0, 1.0])
def test_bound_is_below_the_optimum(price: float) -> None:
    """One copy per expert, at any step of the climb, against brute force; and close to it at its end."""
    gaps = []
    for seed in range(56):
        problem = tiny(ONE_COPY[seed % len(ONE_COPY)], seed, Options(balance_weight=price))
        best = optimum(problem)
        iterations = [5, 40, 120][seed // 8 % 3]
        found, _ = lagrangian_bound(pieces_of(problem), iterations=iterations)
        assert found <= best + EPS, seed
        if iterations == 120:
            gaps.append(best - found)
    assert np.mean(gaps) < (0.01 if price == 0 else 0.08)


@pytest.mark.parametrize("cap", [1.05, 1.3])
def test_bound_under_a_cap_is_below_every_map_within_it(cap: float) -> None:
    """One GPU a node, so the cap on ranks is one on nodes."""
    higher = 0
    for seed in range(12):
        problem = tiny(ONE_COPY[seed % 2], seed, Options(balance_weight=0.0, max_imbalance=cap, bound="tight"))
        best = optimum(problem, cap)
        pieces = pieces_of(problem)
        nodes = problem.cluster.num_nodes
        free = lagrangian_bound(pieces, iterations=60)[0]
        capped = lagrangian_bound(pieces._replace(most_node=(cap + 2e-9) / nodes), iterations=60)[0]
        assert capped <= best + EPS, seed
        higher += capped > free + 0.01
    assert higher >= 1
    assert objective_bound(problem) <= best + EPS


def test_bound_is_that_of_its_multipliers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed once more in fractions and long double: what rounding may have added is taken off, and little more."""
    monkeypatch.setattr(
        "placement.bounds.same_node_relaxation.MOST_EXPERTS_WITH_TRIANGLES", 0
    )  # not in the other computation
    climbed = 0
    for seed in range(12):
        problem = tiny(ONE_COPY[seed % 6], seed, Options(balance_weight=[0.0, 0.7][seed % 2]))
        pieces = pieces_of(problem)
        found, at = lagrangian_bound(pieces, iterations=60)
        true = one_copy_dual(pieces, at)
        if found > max(spectral_bound(pieces, bound_steps(problem.num_experts)), pieces.price_B @ pieces.floor_B):
            climbed += 1
            assert found <= true
            assert found == pytest.approx(float(true), abs=1e-7)
    assert climbed >= 5


@pytest.mark.parametrize("name", ["MOST_TOP_K", "MOST_CELLS"])
def test_even_multipliers_give_a_bound(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a set has too many splits only its features are counted, or the sets take turns."""
    monkeypatch.setattr(f"placement.bounds.token_sets.{name}", 0 if name == "MOST_TOP_K" else 60)
    for seed in range(8):
        one = tiny(ONE_COPY[seed % len(ONE_COPY)], seed, Options(balance_weight=0.0))
        assert lagrangian_bound(pieces_of(one), iterations=60)[0] <= optimum(one) + EPS, seed
        several = tiny(COPIES[seed % len(COPIES)], seed, Options(balance_weight=0.0))
        assert objective_bound(several) <= optimum(several) + EPS, seed


@pytest.mark.parametrize("bound", ["quick", "tight"])
def test_bound_with_copies_is_below_the_optimum(bound: str) -> None:
    """Against all maps and all covers; and not far below it."""
    gaps = []
    for seed in range(28 if bound == "quick" else 7):
        problem = tiny(COPIES[seed % len(COPIES)], seed, Options(balance_weight=0.0, bound=bound))
        best = optimum(problem)
        found = objective_bound(problem)
        assert 0 <= found <= best + EPS, seed
        gaps.append(best - found)
    assert np.mean(gaps) < 0.05


@pytest.mark.parametrize("transport", ["rank", "assignment"])
def test_bound_of_other_transports(transport: str) -> None:
    """A node of one rank: a copy to a rank is one to its node; of assignments, every one counts."""
    for seed in range(16):
        problem = tiny(ONE_COPY[seed % 6], seed, Options(balance_weight=0.0, transport=transport))
        best = np.inf
        nodes, slots = problem.cluster.num_nodes, problem.cluster.slots_per_node
        for row in all_maps(problem.num_experts, nodes, slots):
            node_E = np.argsort(row) // slots
            if transport == "rank":
                best = min(best, sends_of(problem, row))
                continue
            assert problem.home_U is not None
            there_UK = problem.sets_UK >= 0
            stays_UK = (node_E[problem.sets_UK] == problem.home_U[:, None]) & there_UK
            size_U = there_UK.sum(axis=1)
            stays_U = np.where(problem.home_U < 0, size_U / nodes, stays_UK.sum(axis=1))
            best = min(best, float(problem.count_U @ (size_U - stays_U) / problem.count_U.sum()))
        found = objective_bound(problem)
        assert found <= best + EPS, seed
        if transport == "assignment":
            assert found == pytest.approx(best)


def test_given_homes_that_fit_are_worth_something_and_the_bound_knows() -> None:
    """Tokens at home where their experts are: next to nothing has to be sent, and the bound is not above that."""
    problem = tiny((6, 3, 2, 3), 1, Options(balance_weight=0.0))
    planted = np.array([[0, 1, 2], [3, 4, 5]] * 10, dtype=np.int32)
    fits = replace(
        problem, sets_UK=planted, count_U=np.ones(20, dtype=np.int64), home_U=np.tile([0, 1], 10).astype(np.int32)
    )
    assert objective_bound(fits) == pytest.approx(0, abs=1e-9)
    clash = replace(fits, home_U=np.array([0, 1, 1, 0] * 5, dtype=np.int32))
    assert (
        0.45 < objective_bound(replace(clash, options=replace(clash.options, bound="tight"))) <= optimum(clash) == 0.5
    )


def test_random_homes_said_outright_change_nothing() -> None:
    """All -1 is the same as none given."""
    problem = tiny((6, 3, 2, 3), 4, Options(balance_weight=0.0, bound="tight"))
    none = replace(problem, home_U=None)
    outright = replace(problem, home_U=np.full(len(problem.sets_UK), -1, dtype=np.int32))
    assert objective_bound(outright) == pytest.approx(objective_bound(none), abs=2e-3)
    shape = (problem.num_experts, 2, 4)
    one = sends_bound(problem.sets_UK, problem.count_U, *shape)
    other = sends_bound(problem.sets_UK, problem.count_U, *shape, home_U=outright.home_U)
    assert other == pytest.approx(one, abs=0.02)


@pytest.mark.parametrize(
    ("top_k", "nodes", "slots", "count"), [(2, 2, 2, 4), (3, 2, 3, 8), (2, 3, 1, 3), (3, 4, 3, 15)]
)
def test_splits_with_a_home(top_k: int, nodes: int, slots: int, count: int) -> None:
    """Partitions of the experts and the home whose blocks fit, by hand; all stay at home where they fit."""
    splits = home_splits(top_k, nodes, slots, hosts=False)
    assert len(splits.parts_PJ) == count
    costs, counts = even_splits(top_k, nodes, slots, hosts=False, home=True)
    assert splits.cost_P.min() == costs.min() == -(-(top_k - min(top_k, slots)) // slots)
    assert counts[:, 1].max() == min(top_k, slots)
