"""One map for several rows of loads: valid, no worse than its start, near brute force, and the same again."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.core.placement import map_faults
from placement.solvers.balancing.even_rows import WORST, even_row

Floats = npt.NDArray[np.float64]


def peaks(row: npt.NDArray[np.int32], load_BE: Floats, cluster: Cluster) -> Floats:
    """max / mean under every row of loads, in plain numpy; copies serve even shares."""
    each_BE = load_BE / np.bincount(row, minlength=load_BE.shape[1])
    load_BG = each_BE[:, row].reshape(len(load_BE), cluster.num_ranks, -1).sum(axis=2)
    return np.asarray((load_BG / cluster.speed_G()).max(axis=1) / load_BG.mean(axis=1))


@st.composite
def layers(draw: st.DrawFn) -> tuple[Floats, Cluster]:
    num_experts, ranks, slots = draw(
        st.sampled_from([(4, 2, 2), (6, 3, 2), (4, 4, 1), (4, 2, 3), (4, 3, 2), (5, 3, 2), (5, 2, 4), (6, 1, 6)])
    )
    rows = draw(st.integers(1, 4))
    seed = draw(st.integers(0, 2**32 - 1))
    load_BE = np.random.default_rng(seed).gamma(draw(st.sampled_from([0.2, 1.0, 5.0])), size=(rows, num_experts)) + 1e-6
    speeds = draw(st.none() | st.lists(st.sampled_from([0.5, 1.0, 1.5]), min_size=ranks, max_size=ranks))
    cluster = Cluster(num_nodes=1, gpus_per_node=ranks, slots_per_gpu=slots, gpu_speeds=tuple(speeds or ()))
    return load_BE / load_BE.sum(axis=1, keepdims=True), cluster


def least(load_BE: Floats, cluster: Cluster, power: int) -> float:
    """Power mean of the best of all maps, one by one."""
    held = list(itertools.combinations(range(load_BE.shape[1]), cluster.slots_per_gpu))
    rows = (np.array(ranks, dtype=np.int32).ravel() for ranks in itertools.product(held, repeat=cluster.num_ranks))
    whole = (row for row in rows if np.bincount(row, minlength=load_BE.shape[1]).all())
    return float(min((peaks(row, load_BE, cluster) ** power).mean() for row in whole) ** (1 / power))


@settings(max_examples=40, deadline=None)
@given(layers(), st.sampled_from([1, 2, WORST]))
def test_no_map_is_better(layer: tuple[Floats, Cluster], power: int) -> None:
    """Of all maps of tiny layers none has a lower power mean over rows, with copies none a much lower one; slots hold
    every expert, none twice a rank."""
    load_BE, cluster = layer
    found = min(
        float((peaks(row, load_BE, cluster) ** power).mean() ** (1 / power))
        for row in (even_row(load_BE, cluster, power=power, moves=4_000, seed=seed) for seed in range(4))
    )
    row = even_row(load_BE, cluster, power=power, moves=4_000, seed=0)
    sizes = {"num_ranks": cluster.num_ranks, "slots_per_gpu": cluster.slots_per_gpu}
    assert not map_faults(row[None], num_layers=1, num_experts=load_BE.shape[1], **sizes)
    optimum = least(load_BE, cluster, power)
    assert optimum * (1 - 1e-9) <= found <= optimum * (1.2 if cluster.num_slots > load_BE.shape[1] else 1 + 1e-9)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_moves_never_harm(seed: int, redundant: int) -> None:
    """On layers of real size: what annealing returns is no worse than the packing that it starts from."""
    cluster = Cluster.fit(40, num_nodes=2, gpus_per_node=4, redundant_experts=redundant // 8 * 8)
    load_BE = np.random.default_rng(seed).dirichlet(np.full(40, 0.5), size=5)
    start, end = (even_row(load_BE, cluster, power=WORST, moves=moves, seed=seed) for moves in (1, 3_000))
    values = [(peaks(row, load_BE, cluster) ** WORST).mean() for row in (start, end)]
    assert values[1] <= values[0] * (1 + 1e-9)
    np.testing.assert_array_equal(end, even_row(load_BE, cluster, power=WORST, moves=3_000, seed=seed))


def test_two_captures_that_disagree_are_both_served() -> None:
    """Hot experts of one capture are cold in the other: the map of the sum leaves both uneven, this one does not."""
    rng = np.random.default_rng(5)
    hot = rng.permutation(64)
    load_BE = rng.gamma(4.0, size=(2, 64))
    load_BE[0, hot[:16]] *= 6
    load_BE[1, hot[16:32]] *= 6
    load_BE /= load_BE.sum(axis=1, keepdims=True)
    cluster = Cluster(num_nodes=2, gpus_per_node=8, slots_per_gpu=5)
    both = even_row(load_BE, cluster, power=WORST, moves=100_000, seed=0)
    summed = even_row(load_BE.mean(axis=0, keepdims=True), cluster, power=1, moves=100_000, seed=0)
    assert peaks(both, load_BE, cluster).max() < 1.06
    assert peaks(summed, load_BE, cluster).max() > 1.2
