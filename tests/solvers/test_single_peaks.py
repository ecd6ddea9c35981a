"""What annealing of single copies knows of the most loaded ranks is exact, and what it refuses early is hopeless."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.solvers.annealing.anneal_common import costs_of, incidence
from placement.solvers.annealing.anneal_single import anneal_single
from placement.solvers.annealing.single_peaks import (
    FEW_BOOTS,
    Highest,
    measure_highest,
    measure_reliefs,
    peaks_after,
    rise_of_few,
)
from placement.solvers.options import Options
from placement.testing.problems import random_problem


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10_000),
    ranks=st.integers(1, 6),
    boots=st.integers(1, 2 * FEW_BOOTS),
    levels=st.integers(1, 4) | st.just(10_000),
)
def test_peaks_after_a_swap(seed: int, ranks: int, boots: int, levels: int) -> None:
    """The peaks that a swap of two ranks would bring are those of the loads after it, where loads are equal too, and
    no swap saves more than the relief of its ranks."""
    rng = np.random.default_rng(seed)
    problem = random_problem(2 * ranks, 2, Cluster(num_nodes=ranks, gpus_per_node=1, slots_per_gpu=2), seed=seed)
    load_EB = rng.integers(0, levels, (2 * ranks + 1, boots)) / levels
    costs = costs_of(problem, 2 * ranks)._replace(load_EB=load_EB)
    load_GB = load_EB[:-1].reshape(ranks, 2, boots).sum(axis=1)
    highest = Highest(np.empty(boots), np.empty(boots), np.empty(boots), np.empty(boots, dtype=np.int64))
    measure_highest(load_GB, highest)
    relief_G, rest_G, peak_B = np.empty(ranks), np.empty(ranks), np.empty(boots)
    measure_reliefs(highest, costs, relief_G, rest_G)
    np.testing.assert_array_equal(highest.first_B, load_GB.max(axis=0))
    for u, v in combinations(range(2 * ranks), 2):
        r, s = u // 2, v // 2
        if r == s:
            continue
        peaks_after(u, v, r, s, 0, boots, load_GB, highest, costs, peak_B)
        after_GB = load_GB.copy()
        after_GB[r] += load_EB[v] - load_EB[u]
        after_GB[s] -= load_EB[v] - load_EB[u]
        np.testing.assert_allclose(peak_B, after_GB.max(axis=0), atol=1e-12)
        saved_B = (highest.first_B - peak_B) * costs.price / boots
        assert saved_B.sum() <= relief_G[r] + relief_G[s] + 1e-12
        assert saved_B[FEW_BOOTS:].sum() <= rest_G[r] + rest_G[s] + 1e-12
        if boots >= FEW_BOOTS:
            rise = (peak_B - highest.first_B)[:FEW_BOOTS].sum()
            assert rise_of_few(peak_B, highest.first_B) == pytest.approx(rise, abs=1e-12)


@pytest.mark.parametrize("cap", [None, 1.3])
@settings(max_examples=20)
@given(seed=st.integers(0, 10_000), nodes=st.integers(2, 4), spread=st.sampled_from([0.1, 2.0]))
def test_many_bootstraps(cap: float | None, seed: int, nodes: int, spread: float) -> None:
    """With more bootstraps than most swaps are refused by, the cost told is the objective of the map that is left."""
    cluster = Cluster(num_nodes=nodes, gpus_per_node=2, slots_per_gpu=3)
    experts = cluster.num_slots
    problem = random_problem(experts, 4, cluster, seed=seed, options=Options(max_imbalance=cap))
    drawn_BE = np.random.default_rng(seed).gamma(1 / spread, size=(3 * FEW_BOOTS, experts)) + 1e-3
    loads_BE = np.concatenate([problem.load_BE[:1], drawn_BE / drawn_BE.sum(axis=1, keepdims=True)])
    problem = replace(problem, load_BE=loads_BE)
    row = np.random.default_rng(seed).permutation(experts).astype(np.int32)
    before = problem.score(row)
    cost = anneal_single(row, incidence(problem, experts), costs_of(problem, experts), 0.1, 1e-3, 2000, np.uint64(seed))
    after = problem.score(row)
    assert cost == pytest.approx(after.objective + 50 * after.excess, abs=1e-9)
    assert cost < before.objective + 50 * before.excess
