"""`separate_copies` mends every map that can be mended."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.solvers.moves import separate_copies


@st.composite
def maps(draw: Any) -> tuple[np.ndarray, Cluster, np.ndarray]:
    nodes, gpus, slots = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 5))
    total = nodes * gpus * slots
    num_experts = draw(st.integers(slots, total))
    rest = draw(st.lists(st.integers(0, num_experts - 1), min_size=total - num_experts, max_size=total - num_experts))
    row = np.array(draw(st.permutations([*range(num_experts), *rest])), dtype=np.int32)
    load = np.array(draw(st.lists(st.sampled_from([0.0, 0.1, 1.0, 7.0]), min_size=num_experts, max_size=num_experts)))
    return row, Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots), load


@settings(max_examples=300, deadline=1000)
@given(maps())
def test_no_rank_holds_an_expert_twice(case: tuple[np.ndarray, Cluster, np.ndarray]) -> None:
    """Terminates on any map that has every expert, keeps every expert, and leaves no double."""
    row, cluster, load = case
    before = row.copy()
    mended = separate_copies(row, cluster, load)
    assert np.array_equal(row, before)
    assert mended.dtype == np.int32
    assert set(mended.tolist()) == set(range(len(load)))
    for held in mended.reshape(cluster.num_ranks, -1).tolist():
        assert len(set(held)) == len(held)


@settings(max_examples=100, deadline=1000)
@given(maps())
def test_sound_maps_stay_as_they_are(case: tuple[np.ndarray, Cluster, np.ndarray]) -> None:
    """Mending is idempotent: what is sound is not touched."""
    row, cluster, load = case
    mended = separate_copies(row, cluster, load)
    assert np.array_equal(separate_copies(mended, cluster, load), mended)


@settings(max_examples=100, deadline=1000)
@given(maps())
def test_copies_are_kept_where_they_can_be(case: tuple[np.ndarray, Cluster, np.ndarray]) -> None:
    """Only copies beyond one a rank give way; the others' numbers are what the solver chose."""
    row, cluster, load = case
    chosen = np.bincount(row, minlength=len(load))
    kept = np.bincount(separate_copies(row, cluster, load), minlength=len(load))
    assert (kept >= np.minimum(chosen, cluster.num_ranks)).all()


def test_prefers_a_swap_on_the_same_node() -> None:
    """Between nodes a swap would change what is sent over the network."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2)
    row = np.array([0, 0, 1, 2, 3, 4, 5, 1], dtype=np.int32)
    mended = separate_copies(row, cluster, np.ones(6))
    assert sorted(mended[:4].tolist()) == [0, 0, 1, 2]
    assert mended[4:].tolist() == [3, 4, 5, 1]
