"""The quick count of `min-nodes` on links that are alike is the same as booking every copy from where to where."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement.core.cluster import Cluster
from placement.core.shape import Shape
from placement.cost.choices.base import LayerCost, LayerTokens
from placement.cost.choices.min_nodes import MinNodes
from placement.cost.covers import MAX_COVERS, smallest_covers
from placement.cost.kernel_families import cost_families
from placement.cost.kernel_min_nodes import cost_min_nodes
from placement.cost.lookup_tables import layer_tables
from placement.cost.node_families import MOST_NODES, choices_of, families_of
from placement.cost.traffic import Traffic
from placement.testing.problems import short_sets


@settings(max_examples=120, deadline=None)
@given(
    nodes=st.sampled_from([1, 2, 3, 4, 8, 9, 12, 40, 64]),
    gpus=st.integers(1, 3),
    slots=st.integers(1, 3),
    share=st.floats(0.15, 1.0),
    top_k=st.integers(1, 9),
    short=st.sampled_from([0.0, 0.3, 0.8]),
    seed=st.integers(0, 2**32 - 1),
)
def test_is_the_mean_over_given_homes(
    nodes: int, gpus: int, slots: int, share: float, top_k: int, short: float, seed: int
) -> None:
    """With every node as the given home in turn there are no cells of homes and no covers in common."""
    rng = np.random.default_rng(seed)
    num_slots, num_ranks = nodes * gpus * slots, nodes * gpus
    experts = max(int(share * num_slots), 1)
    popular_E = rng.random(experts) ** 3 + 0.01
    copies = rng.choice(experts, num_slots - experts, p=popular_E / popular_E.sum())
    row = rng.permutation(np.concatenate([np.arange(experts), copies])).astype(np.int32)
    ids_TK = np.argsort(rng.random((12, experts)), axis=1)[:, : min(top_k, experts)]
    ids_TK = short_sets(rng, ids_TK[None], short)[0].astype(np.int32)
    count_T = rng.integers(1, 5, len(ids_TK))
    cluster = Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots)
    tables = layer_tables(row, experts, cluster)
    booked = LayerCost.start(row, experts, cluster, "node")
    for home in range(nodes):
        home_T = np.full(len(ids_TK), home, dtype=np.int32)
        MinNodes().cost(LayerTokens(ids_TK, count_T, home_T, False), booked)

    kernels: list[Callable[..., None]] = [cost_min_nodes]
    if nodes <= MOST_NODES:
        tables_of: dict[str, Any] = {"families": families_of(nodes, random_homes=True), "choices": choices_of(nodes)}
        kernels.append(partial(cost_families, **tables_of))
    for kernel in kernels:
        quick, load_P = Traffic.start(nodes, num_ranks), np.zeros(num_slots)
        kernel(ids_TK, count_T, tables, traffic=quick, load_P=load_P)
        for name, remote_HX in remote_copies(booked.traffic).items():
            here_HX = remote_copies(quick)[name]
            np.testing.assert_allclose(here_HX, remote_HX / nodes, rtol=1e-9, atol=1e-9, err_msg=name)
        assert quick.assignment_HG.sum() == pytest.approx(booked.traffic.assignment_HG.sum() / nodes)
        np.testing.assert_allclose(load_P, booked.load_P / nodes, rtol=1e-9, atol=1e-9)


def remote_copies(traffic: Traffic) -> dict[str, np.ndarray]:
    """Copies that leave the home, from where to where."""
    nodes, ranks = traffic.rank_HG.shape
    remote_HG = np.repeat(1 - np.eye(nodes), ranks // nodes, axis=1)
    return {
        "node": traffic.node_HN * (1 - np.eye(nodes)),
        "rank": traffic.rank_HG * remote_HG,
        "assignment": traffic.assignment_HG * remote_HG,
    }


def greedy_cover(masks: list[set[int]], pivot: int, num_nodes: int) -> set[int]:
    """Most masks first; of equals the node that is reached first counting up from the pivot."""
    chosen: set[int] = set()
    while any(not mask & chosen for mask in masks):
        left = [mask for mask in masks if not mask & chosen]
        order = [(pivot + step) % num_nodes for step in range(1, num_nodes + 1)]
        chosen.add(max(order, key=lambda node: sum(node in mask for mask in left)))  # max takes the first of equals
    return chosen


@settings(max_examples=200, deadline=None)
@given(data=st.data(), num_nodes=st.integers(9, 64))
def test_greedy_cover(data: st.DataObject, num_nodes: int) -> None:
    """Beyond eight nodes the one cover is the greedy one, its ties counted from the pivot."""
    nodes = st.sets(st.integers(0, num_nodes - 1), min_size=1, max_size=5)
    masks = data.draw(st.lists(nodes, min_size=2, max_size=8).filter(lambda sets: not set.intersection(*sets)))
    pivot = data.draw(st.integers(0, num_nodes - 1))
    open_M = np.array([sum(1 << node for node in mask) for mask in masks], dtype=np.uint64)
    out = np.empty(MAX_COVERS, dtype=np.uint64)
    assert smallest_covers(open_M, len(masks), pivot, num_nodes, out) == 1
    assert {node for node in range(64) if int(out[0]) >> node & 1} == greedy_cover(masks, pivot, num_nodes)


@pytest.mark.parametrize("gpus", [1, 2])
def test_by_hand(gpus: int) -> None:
    """Two experts on nodes 0 and 1 of ten: at eight homes one copy leaves, at two none does; one load is even."""
    row = np.array([*([0, 1] * 2), *range(2, 18)]) if gpus == 2 else np.array([0, 0, *range(1, 9)])
    ids_TK = np.array([[0, 1]] if gpus == 2 else [[0]])
    shape = Shape(num_nodes=10, gpus_per_node=gpus, slots_per_gpu=len(row) // (10 * gpus))
    tables = layer_tables(row, int(row.max()) + 1, shape)
    traffic, load_P = Traffic.start(10, 10 * gpus), np.zeros(len(row))
    cost_min_nodes(ids_TK, np.array([10]), tables, traffic, load_P)
    assert traffic.leaving_3().tolist() == pytest.approx([8, 8 * gpus, 8 * gpus])
    assert load_P[: 2 * gpus].tolist() == pytest.approx([5.0] * (2 * gpus))
