"""The best split of load over replicas, against the duality of flows and cuts."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Cluster
from placement.cost.load_split import best_imbalance_L, optimal_split
from placement.errors import MapError


def least_imbalance(load: list[float], slots: list[list[int]], speed: list[float]) -> float:
    """The ranks that hold one of some experts share all their load: the worst set of experts decides."""
    experts = range(len(load))
    worst = 0.0
    for size in range(1, len(load) + 1):
        for chosen in combinations(experts, size):
            ranks = [g for g, held in enumerate(slots) if set(held) & set(chosen)]
            worst = max(worst, sum(load[e] for e in chosen) / sum(speed[g] for g in ranks))
    return worst * len(slots) / sum(load)


@settings(max_examples=60)
@given(data=st.data(), seed=st.integers(0, 10_000))
def test_split_is_optimal(data: st.DataObject, seed: int) -> None:
    """The imbalance is the least possible, the shares make it, and those of each expert add up to 1."""
    nodes, gpus, slots, experts = data.draw(
        st.sampled_from([(2, 1, 3, 4), (2, 2, 2, 5), (3, 1, 4, 7), (1, 4, 2, 6), (2, 2, 2, 8)])
    )
    rng = np.random.default_rng(seed)
    speeds = tuple(rng.uniform(0.5, 2.0, nodes * gpus).tolist()) if seed % 2 else ()
    cluster = Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, gpu_speeds=speeds)
    extra = rng.integers(0, experts, cluster.num_slots - experts)
    row = rng.permutation(np.concatenate([np.arange(experts), extra]))
    load = rng.exponential(size=experts) * (rng.random(experts) < 0.8)
    if not load.any():
        load[0] = 1.0
    share, imbalance = optimal_split(load, row, cluster)
    by_rank = row.reshape(-1, slots)
    assert imbalance == pytest.approx(least_imbalance(load.tolist(), by_rank.tolist(), cluster.speed_G().tolist()))
    assert (share >= 0).all()
    assert np.bincount(row, weights=share, minlength=experts) == pytest.approx(np.ones(experts))
    served = (load[row] * share).reshape(-1, slots).sum(axis=1) / cluster.speed_G()
    assert served.max() * cluster.num_ranks / load.sum() == pytest.approx(imbalance)


def test_nothing_to_split() -> None:
    """Without load the map is even; an expert with load and no slot is named."""
    cluster = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=2)
    share, imbalance = optimal_split(np.zeros(3), np.array([0, 1, 2, 0]), cluster)
    assert imbalance == 1.0 and share.tolist() == [0.5, 1.0, 1.0, 0.5]
    with pytest.raises(MapError, match="expert 2 has load"):
        optimal_split(np.ones(3), np.array([0, 1, 1, 0]), cluster)


def test_layers_of_a_map() -> None:
    """Of loads by slot: copies of an expert are added up before they are split again, layer by layer."""
    cluster = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=2)
    phy2log_LP = np.array([[0, 1, 2, 0], [0, 1, 2, 1]])
    load_LP = np.array([[9.0, 2.0, 3.0, 0.0], [4.0, 1.0, 1.0, 0.0]])
    assert best_imbalance_L(load_LP, phy2log_LP, cluster, 3) == pytest.approx([1.0, 4.0 / 3.0])
