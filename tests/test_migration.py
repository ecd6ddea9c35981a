"""A migration plan turns one map into the other, over the cheapest links, and adds up."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Cluster, Model, Placement
from placement.core.migration import MigrationPlan, map_digest, migration_plan
from placement.core.relabel import moved_P
from placement.core.topology import Level, Topology
from placement.errors import MapError

RACKS = Topology(levels=(Level(name="rack", nodes=2, gbps=50.0),))


def placement(rows: Any, cluster: Cluster, num_experts: int, **model: Any) -> Placement:
    shape = {"name": "m", "layer_ids": tuple(range(3, 3 + len(rows))), "num_experts": num_experts, "top_k": 2} | model
    return Placement(
        model=Model(**shape),
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        slots_per_gpu=cluster.slots_per_gpu,
        phy2log_LP=np.array(rows),
    )


@st.composite
def changes(draw: Any) -> tuple[Placement, Placement, Cluster]:
    """Two maps with copies on 4 nodes of 2 GPUs, in racks or not."""
    cluster = Cluster(
        num_nodes=4, gpus_per_node=2, slots_per_gpu=2, topology=draw(st.sampled_from([Topology(), RACKS]))
    )
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    rows = []
    for _ in range(4):
        extra = rng.permutation(8)
        # every rank holds an expert of the first round and another one of the second
        rows.append(np.stack([extra, np.roll(extra, rng.integers(1, 8))], axis=1).ravel())
    return placement(rows[:2], cluster, 8), placement(rows[2:], cluster, 8), cluster


def executed(current: Placement, plan: MigrationPlan) -> np.ndarray:
    """What the slots hold after the copies of the document, read from the old weights; a rank that lacks one fails."""
    weights = current.phy2log_LP.copy()
    document = json.loads(json.dumps(plan.document()))
    ids = current.model.layer_ids
    for layer_id, slot, expert, source, target in document["copies"]:
        layer = ids.index(layer_id)
        held = current.phy2log_LP[layer].reshape(current.num_ranks, -1)
        assert expert in held[source]
        assert (source == target) == (expert in held[target])
        assert slot // current.slots_per_gpu == target
        weights[layer, slot] = expert
    return weights


@settings(max_examples=60)
@given(changes())
def test_the_copies_make_the_new_map(case: tuple[Placement, Placement, Cluster]) -> None:
    """Executed, every slot holds what the new map says; a rank copies from itself only what it holds already."""
    current, new, cluster = case
    assert np.array_equal(executed(current, migration_plan(current, new, cluster)), new.phy2log_LP)


@settings(max_examples=60)
@given(changes())
def test_sources_are_as_near_as_can_be(case: tuple[Placement, Placement, Cluster]) -> None:
    """No copy crosses a slower link than its expert must; totals are those of the copies one by one."""
    current, new, cluster = case
    plan = migration_plan(current, new, cluster)
    cost = cluster.topology.node_cost_NN(4, 2, cluster.inter_gbps)
    within = 0
    for layer, expert, source, target in zip(plan.layer_M, plan.expert_M, plan.source_M, plan.target_M, strict=True):
        held = current.phy2log_LP[layer].reshape(cluster.num_ranks, -1)
        holders = [rank for rank in range(8) if expert in held[rank]]
        assert cost[source // 2, target // 2] == min(cost[rank // 2, target // 2] for rank in holders)
        assert source == target or target not in holders
        within += source // 2 == target // 2 and source != target
    size = cluster.expert_bytes
    assert plan.bytes_within_nodes == within * size
    assert plan.bytes_between_nodes == (plan.num_moves - within) * size
    summary = plan.summary()
    assert sum(summary["moves_by_layer"]) == summary["moves"] == plan.num_moves
    assert plan.num_moves == sum(
        int(moved_P(old_P, new_P, cluster).sum())
        for old_P, new_P in zip(current.phy2log_LP, new.phy2log_LP, strict=True)
    )
    assert (summary["from_map"], summary["to_map"]) == (map_digest(current), map_digest(new))


def test_several_sources_share_the_work() -> None:
    """Of GPUs equally near, the one that has sent least sends next; the time is that of the busiest."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2, inter_gbps=8.0, expert_bytes=10**6)
    current = placement([[0, 1, 1, 0, 2, 3, 3, 2]], cluster, 4)
    new = placement([[0, 2, 1, 2, 0, 3, 3, 1]], cluster, 4)
    plan = migration_plan(current, new, cluster)
    assert plan.num_moves == 4
    assert sorted(plan.source_M.tolist()) == [0, 1, 2, 3]
    assert plan.bytes_NN.tolist() == [[0, 2_000_000], [2_000_000, 0]]
    assert plan.time_ms() == pytest.approx(1.0)  # a megabyte at 8 Gbit/s, each way at once


def test_within_a_node_it_is_quicker() -> None:
    """The network of the rack and the links within nodes have their own speeds, and run side by side."""
    cluster = Cluster(
        num_nodes=2, gpus_per_node=2, slots_per_gpu=1, inter_gbps=8.0, intra_gbps=80.0, expert_bytes=10**6
    )
    current = placement([[0, 1, 2, 3]], cluster, 4)
    swap_near, swap_far = placement([[1, 0, 2, 3]], cluster, 4), placement([[2, 1, 0, 3]], cluster, 4)
    assert migration_plan(current, swap_near, cluster).time_ms() == pytest.approx(0.1)
    assert migration_plan(current, swap_far, cluster).time_ms() == pytest.approx(1.0)
    slow = Cluster(
        num_nodes=2,
        gpus_per_node=2,
        slots_per_gpu=1,
        inter_gbps=8.0,
        expert_bytes=10**6,
        topology=Topology(node_gbps=(8.0, 2.0)),
    )
    assert migration_plan(current, swap_far, slow).time_ms() == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (placement([[0, 1, 2, 3]], Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=1), 4, top_k=1), "top-1"),
        (placement([[0, 1, 2, 3]] * 2, Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=1), 4), "2 layers"),
    ],
    ids=["model", "layers"],
)
def test_maps_that_do_not_fit(other: Placement, told: str) -> None:
    """A plan between maps of different models is refused with what differs, and a cluster that is not the new map's."""
    cluster = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=1)
    with pytest.raises(MapError, match=told):
        migration_plan(other, placement([[3, 1, 2, 0]], cluster, 4), cluster)
    smaller = Cluster(num_nodes=2, gpus_per_node=1, slots_per_gpu=2)
    with pytest.raises(MapError, match="the new map is for 2 nodes x 2 GPUs"):
        migration_plan(other, placement(other.phy2log_LP, cluster, 4, top_k=other.model.top_k), smaller)
