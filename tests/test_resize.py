"""Maps between clusters of different size: which rank is which, the fewest copies against brute force, the plan."""

from __future__ import annotations

import json
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from placement import Cluster, Model, Placement
from placement.core.migration import CHECKPOINT, migration_plan
from placement.core.resize import NEW, Resize, fewest_copies_P, old_ranks_G
from placement.core.shape import Shape
from placement.errors import ClusterError
from placement.testing.problems import all_maps


def shape(nodes: int, gpus: int, slots: int = 2) -> Shape:
    return Shape(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots)


@pytest.mark.parametrize(
    ("old", "new", "lost", "ranks"),
    [
        (shape(1, 4), shape(1, 6), (), [0, 1, 2, 3, NEW, NEW]),
        (shape(1, 4), shape(1, 4), (), [0, 1, 2, 3]),
        (shape(1, 8), shape(1, 7), (), [0, 1, 2, 3, 4, 5, 6]),
        (shape(1, 8), shape(1, 7), (5,), [0, 1, 2, 3, 4, 6, 7]),
        (shape(1, 8), shape(1, 6), (5,), None),
        (shape(1, 8), shape(1, 7), (5, 2), [0, 1, 3, 4, 6, 7, NEW]),
        (shape(1, 4), shape(1, 4), (1,), [0, NEW, 2, 3]),
        (shape(1, 4), shape(1, 5), (1,), [0, NEW, 2, 3, NEW]),
        (shape(2, 2), shape(3, 2), (), [0, 1, 2, 3, NEW, NEW]),
        (shape(3, 2), shape(2, 2), (0, 1), [2, 3, 4, 5]),
        (shape(3, 2), shape(2, 2), (), [0, 1, 2, 3]),
        (shape(2, 2), shape(2, 3), (), [0, 1, NEW, 2, 3, NEW]),
        (shape(2, 3), shape(2, 2), (), [0, 1, 3, 4]),
        (shape(2, 3), shape(2, 2), (0, 4), [1, 2, 3, 5]),
        (shape(2, 3), shape(2, 2), (0, 1), None),
        (shape(2, 2), shape(1, 3), (1,), [0, 2, 3]),
        (shape(2, 2), shape(4, 1), (), [0, 1, 2, 3]),
        (shape(1, 2), shape(1, 2), (2,), None),
    ],
)
def test_which_rank_is_which(old: Shape, new: Shape, lost: tuple[int, ...], ranks: list[int] | None) -> None:
    """Ranks that stay keep their place, close up where the cluster is smaller, and others are refused."""
    if ranks is None:
        with pytest.raises(ClusterError, match=r"lost"):
            old_ranks_G(old, new, lost)
    else:
        assert old_ranks_G(old, new, lost).tolist() == ranks


def made(model: Model, on: Shape, rng: np.random.Generator) -> Placement:
    """A random map: every expert somewhere, none twice on a rank."""
    rows = []
    for _ in range(model.num_layers):
        while True:
            ranks = [rng.permutation(model.num_experts)[: on.slots_per_gpu] for _ in range(on.num_ranks)]
            if len(set(np.concatenate(ranks).tolist())) == model.num_experts:
                rows.append(np.concatenate(ranks))
                break
    return Placement(model=model, **on.sizes(), phy2log_LP=np.stack(rows))


@st.composite
def resizes(draw: Any) -> tuple[Placement, Cluster, tuple[int, ...], int]:
    """(a map in use, a cluster of any size, lost ranks, a seed): small enough to try all maps."""
    num_experts = draw(st.integers(2, 4))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    old, new = (
        shape(draw(st.integers(1, 2)), draw(st.integers(1, 2)), draw(st.integers(1, min(3, num_experts))))
        for _ in range(2)
    )
    assume(min(old.num_slots, new.num_slots) >= num_experts)
    model = Model(name="m", layer_ids=(2, 5), num_experts=num_experts, top_k=1)
    lost = tuple(rank for rank in range(old.num_ranks) if draw(st.booleans()) and draw(st.booleans()))
    return made(model, old, rng), Cluster(**new.sizes(), expert_bytes=10**6), lost, int(rng.integers(1000))


def ranks_or_none(current: Placement, cluster: Cluster, lost: tuple[int, ...]) -> np.ndarray:
    try:
        return old_ranks_G(current, cluster, lost)
    except ClusterError:
        assume(False)
        raise


def copies_to(row: np.ndarray, before: list[set[int]], slots: int) -> int:
    """Slots whose expert their rank did not hold, counted one by one."""
    return sum(expert not in before[p // slots] for p, expert in enumerate(row.tolist()))


def holdings(old_P: np.ndarray, current: Placement, ranks: np.ndarray) -> list[set[int]]:
    """What every new rank held, as sets."""
    rows = old_P.reshape(current.num_ranks, -1)
    return [set() if rank == NEW else set(rows[rank].tolist()) for rank in ranks.tolist()]


@settings(max_examples=150, deadline=None)
@given(resizes())
def test_fewest_copies_of_all_maps(case: tuple[Placement, Cluster, tuple[int, ...], int]) -> None:
    """No map of the new cluster needs fewer copies, the map is sound, and what stays keeps its slot."""
    current, cluster, lost, seed = case
    ranks = ranks_or_none(current, cluster, lost)
    load_LE = np.random.default_rng(seed).random((2, current.model.num_experts))
    change = Resize.of(current, cluster, lost)
    start = change.start(load_LE)
    plan = migration_plan(current, start, cluster, lost_ranks=lost)
    fewest_L = []
    for old_P, row in zip(current.phy2log_LP, start.phy2log_LP, strict=True):
        before = holdings(old_P, current, ranks)
        every = all_maps(current.model.num_experts, cluster.num_ranks, cluster.slots_per_gpu)
        fewest_L.append(min(copies_to(one, before, cluster.slots_per_gpu) for one in every))
        assert copies_to(row, before, cluster.slots_per_gpu) == fewest_L[-1]
    assert change.fewest_copies_L().tolist() == fewest_L
    assert plan.num_moves == sum(fewest_L)
    if current.shape == cluster.shape and not lost:
        assert np.array_equal(start.phy2log_LP, current.phy2log_LP)
        assert not change.resized
    if current.slots_per_gpu <= cluster.slots_per_gpu:
        assert not np.any(plan.source_M == plan.target_M)


@settings(max_examples=150, deadline=None)
@given(resizes())
def test_the_plan_makes_the_new_map(case: tuple[Placement, Cluster, tuple[int, ...], int]) -> None:
    """Executed copy by copy, the plan turns what the ranks held into the new map; the checkpoint is read only where no
    rank that stays has the expert; bytes and totals are those of the copies."""
    current, cluster, lost, seed = case
    ranks = ranks_or_none(current, cluster, lost)
    new = made(current.model, cluster, np.random.default_rng(seed))
    plan = migration_plan(current, new, cluster, lost_ranks=lost)
    document = json.loads(json.dumps(plan.document()))
    sent = loaded = 0
    change = Resize.of(current, cluster, lost)
    weights = np.stack([change.now_P(layer) for layer in range(2)])
    for layer_id, slot, expert, source, target in document["copies"]:
        layer = current.model.layer_ids.index(layer_id)
        before = holdings(current.phy2log_LP[layer], current, ranks)
        holders = [rank for rank, held in enumerate(before) if expert in held]
        assert target == slot // cluster.slots_per_gpu
        assert (source is None) == (not holders)
        assert source is None or source in holders
        assert (source == target) == (target in holders)
        loaded += source is None
        sent += source is not None and source != target
        weights[layer, slot] = expert
    assert np.array_equal(weights, new.phy2log_LP)
    assert plan.num_moves == document["moves"] == sent + loaded
    assert plan.num_moves == sum(
        copies_to(row, holdings(old_P, current, ranks), cluster.slots_per_gpu)
        for old_P, row in zip(current.phy2log_LP, new.phy2log_LP, strict=True)
    )
    assert plan.bytes_within_nodes + plan.bytes_between_nodes == sent * 10**6
    assert int(plan.bytes_GG.sum()) == sent * 10**6 and plan.bytes_loaded == loaded * 10**6
    if plan.old_rank_G is not None:
        assert document["from_checkpoint"] == loaded and document["bytes_from_checkpoint"] == loaded * 10**6
        assert document["old_ranks"] == [None if rank == NEW else rank for rank in ranks.tolist()]
    else:
        assert not loaded and "old_ranks" not in document


@settings(max_examples=60, deadline=None)
@given(resizes())
def test_no_names_need_fewer_copies(case: tuple[Placement, Cluster, tuple[int, ...], int]) -> None:
    """Of all names of alike nodes and GPUs that the new map may have, those that are given need the fewest copies."""
    current, cluster, lost, seed = case
    ranks = ranks_or_none(current, cluster, lost)
    new = made(current.model, cluster, np.random.default_rng(seed))
    found = Resize.of(current, cluster, lost).relabelled(new)
    for old_P, row, new_P in zip(current.phy2log_LP, found.phy2log_LP, new.phy2log_LP, strict=True):
        before = holdings(old_P, current, ranks)
        rank_GS = new_P.reshape(cluster.num_nodes, cluster.gpus_per_node, -1)
        fewest = min(
            copies_to(
                np.concatenate([rank_GS[n][list(order)].ravel() for n, order in zip(nodes, orders, strict=True)]),
                before,
                cluster.slots_per_gpu,
            )
            for nodes in permutations(range(cluster.num_nodes))
            for orders in all_orders(cluster.num_nodes, cluster.gpus_per_node)
        )
        assert copies_to(row, before, cluster.slots_per_gpu) == fewest


def all_orders(nodes: int, gpus: int) -> list[tuple[tuple[int, ...], ...]]:
    """An order of the GPUs for every node, in all ways."""
    found: list[tuple[tuple[int, ...], ...]] = [()]
    for _ in range(nodes):
        found = [(*one, order) for one in found for order in permutations(range(gpus))]
    return found


def test_from_four_ranks_to_six() -> None:
    """16 experts on 4 ranks of 4 slots go to 6 ranks of 3: each rank gives one up, two new ranks take 6 copies in."""
    model = Model(name="m", layer_ids=(0,), num_experts=16, top_k=1)
    current = Placement(model=model, **shape(1, 4, 4).sizes(), phy2log_LP=np.arange(16)[None])
    cluster = Cluster(num_nodes=1, gpus_per_node=6, slots_per_gpu=3, expert_bytes=10**6, intra_gbps=8.0)
    start = Resize.of(current, cluster).start(np.arange(1, 17)[None])
    plan = migration_plan(current, start, cluster)
    assert plan.num_moves == 6 and plan.num_loaded == 0
    assert set(plan.target_M.tolist()) == {4, 5}
    # the two slots to spare hold second copies of the heaviest experts
    assert sorted(np.flatnonzero(start.copies_LE()[0] == 2).tolist()) == [14, 15]
    assert plan.time_ms() == pytest.approx(3.0)  # three megabytes into each new rank, at 8 Gbit/s


def test_a_lost_rank_is_read_from_the_checkpoint() -> None:
    """Of 4 ranks one is lost: an expert of which no other rank has a copy is loaded, which costs the links nothing."""
    model = Model(name="m", layer_ids=(0,), num_experts=6, top_k=1)
    current = Placement(model=model, **shape(2, 2).sizes(), phy2log_LP=np.array([[0, 1, 2, 3, 4, 5, 0, 2]]))
    cluster = Cluster(num_nodes=1, gpus_per_node=3, slots_per_gpu=2, expert_bytes=10**6)
    start = Resize.of(current, cluster, (1,)).start(np.ones((1, 6)))
    plan = migration_plan(current, start, cluster, lost_ranks=(1,))
    # ranks 0, 2, 3 held {0, 1}, {4, 5}, {0, 2}; 3 is nowhere, and 0 is held twice
    assert plan.num_moves == 1
    assert plan.expert_M.tolist() == [3] and plan.source_M.tolist() == [CHECKPOINT]
    assert plan.bytes_loaded == 10**6 and plan.time_ms() == 0.0
    assert plan.old_rank_G is not None and plan.old_rank_G.tolist() == [0, 2, 3]


def test_an_expert_twice_on_a_rank_is_kept_once() -> None:
    """What a rank holds counts once, so that a map that wastes a slot goes on without the waste."""
    held_GE = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0]], dtype=bool)
    now_P = np.array([0, 0, 2, 3, -1, -1], dtype=np.int32)
    cluster = Cluster(num_nodes=1, gpus_per_node=3, slots_per_gpu=2)
    row = fewest_copies_P(held_GE, now_P, cluster, np.ones(4))
    assert row[:4].tolist() == [0, 1, 2, 3] and len(set(row[4:].tolist())) == 2
