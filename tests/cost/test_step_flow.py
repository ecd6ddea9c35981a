"""`min-nodes-step`: the nodes of `min-nodes`, and of all ways to share a step out over copies the best one."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Cluster, Model, Placement, evaluate_steps, open_trace
from placement.cost.kernel_balanced import RunningLoad
from placement.cost.kernel_step_flow import assign_step
from placement.cost.lookup_tables import layer_tables
from placement.cost.step_groups import MOST_GROUPS, ask_step, shares_of_step, step_groups, take_slots

NODES, GPUS, SLOTS, EXPERTS, TOP_K = 3, 2, 3, 12, 3
CLUSTER = Cluster(num_nodes=NODES, gpus_per_node=GPUS, slots_per_gpu=SLOTS)


def a_row(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    while True:
        row = rng.permutation(np.concatenate([np.arange(EXPERTS), rng.integers(0, EXPERTS, 6)])).astype(np.int32)
        if all(len(set(held)) == SLOTS for held in row.reshape(-1, SLOTS).tolist()):
            return row


@st.composite
def steps(draw: Any) -> tuple[list[list[int]], list[int], list[int], list[float]]:
    """Ranks that may serve each group, assignments of each, what ranks serve besides, speeds."""
    ranks = draw(st.integers(2, 4))
    one = st.lists(st.integers(0, ranks - 1), min_size=1, unique=True).map(sorted)
    allowed = draw(st.lists(one, min_size=1, max_size=3))
    counts = draw(st.lists(st.integers(0, 3), min_size=len(allowed), max_size=len(allowed)))
    single = draw(st.lists(st.integers(0, 3), min_size=ranks, max_size=ranks))
    speeds = draw(st.lists(st.sampled_from([0.5, 1.0, 1.5]), min_size=ranks, max_size=ranks))
    return allowed, counts, single, speeds


@settings(max_examples=150, deadline=None)
@given(steps())
def test_the_busiest_rank_has_the_least_possible(
    step: tuple[list[list[int]], list[int], list[int], list[float]],
) -> None:
    """By trying every assignment, with equal and unequal speeds; all assignments are served, by who may."""
    allowed, counts, single, speeds = step
    ptr_J, rank_C = np.cumsum([0, *map(len, allowed)]), np.concatenate(allowed).astype(np.int32)
    slowness_G, share_C = 1 / np.array(speeds), np.full(len(rank_C), -7)
    assign_step(np.array(counts), ptr_J, rank_C, np.array(single), slowness_G, share_C)
    assert share_C.min() >= 0
    assert np.add.reduceat(share_C, ptr_J[:-1]).tolist() == counts
    loads = np.array(single) + np.bincount(rank_C, share_C, minlength=len(single))
    every = product(*(ranks for ranks, count in zip(allowed, counts, strict=True) for _ in range(count)))
    tried = (np.array(single) + np.bincount(np.array(one, dtype=int), minlength=len(single)) for one in every)
    assert (loads * slowness_G).max() == pytest.approx(min((one * slowness_G).max() for one in tried))


def test_ranks_share_a_step_out_alike() -> None:
    """Each assignment gets a slot of its expert on a node that the token visits; the slots of all ranks together are
    the shares, whatever rank an assignment is on; a smallest number of nodes is visited."""
    row = a_row(1)
    tables, rng = layer_tables(row, EXPERTS, CLUSTER), np.random.default_rng(0)
    groups = step_groups(tables)
    assert groups is not None
    ids_GTK = np.argsort(rng.random((CLUSTER.num_ranks, 40, EXPERTS)), axis=2)[:, :, :TOP_K]
    ids_GTK[0, 3, 1:] = -1
    asked_GX = np.zeros((CLUSTER.num_ranks, groups.size + CLUSTER.num_ranks), dtype=np.int64)
    group_GTK, slot_GTK = np.empty((2, *ids_GTK.shape), dtype=np.int32)
    for rank, ids_TK in enumerate(ids_GTK):
        running = RunningLoad.start(CLUSTER)
        ask_step(rank, tables, groups, ids_TK, running, group_GTK[rank], slot_GTK[rank], asked_GX[rank])
    assert asked_GX.sum() == (ids_GTK >= 0).sum()
    share_C = shares_of_step(groups, asked_GX, np.ones(CLUSTER.num_ranks))
    for rank, (group_TK, slot_TK) in enumerate(zip(group_GTK, slot_GTK, strict=True)):
        take_slots(groups, share_C, asked_GX[:rank, : groups.size].sum(axis=0), group_TK, slot_TK)
    assert ((slot_GTK >= 0) == (ids_GTK >= 0)).all()
    assert (row[slot_GTK] == ids_GTK)[ids_GTK >= 0].all()
    load_P = np.bincount(slot_GTK[slot_GTK >= 0], minlength=len(row))
    assert load_P.reshape(-1, SLOTS).sum(axis=1).max() == pytest.approx(
        (asked_GX[:, groups.size :].sum(axis=0) + np.bincount(groups.rank_C, share_C, minlength=6)).max()
    )
    nodes = [set(np.flatnonzero(row == e) // (GPUS * SLOTS)) for e in range(EXPERTS)]
    for rank, (ids_TK, slot_TK) in enumerate(zip(ids_GTK, slot_GTK, strict=True)):
        home = rank // GPUS
        for ids, slots in zip(ids_TK.tolist(), slot_TK.tolist(), strict=True):
            visited = {slot // (GPUS * SLOTS) for slot in slots if slot >= 0} - {home}
            fewest = min(
                len(further) for further in map(set, product(range(NODES), repeat=2))
                if all(nodes[e] & (further | {home}) for e in ids if e >= 0)
            ) if any(home not in nodes[e] for e in ids if e >= 0) else 0  # fmt: skip
            assert len(visited) <= fewest


def test_steps_are_more_even_and_send_as_much(tmp_path: Path, write_trace: Any) -> None:
    """In steps of several sizes the busiest GPU has less to do than under both choices without counts, and no less
    than the best split; sends are those of `min-nodes`."""
    sizes = {"num_layers": 2, "num_experts": EXPERTS, "top_k": TOP_K, "tokens": 3000, "requests": 5}
    trace = open_trace(write_trace(tmp_path / "t", **sizes).folder)
    model = Model(name="m", layer_ids=(0, 1), num_experts=EXPERTS, top_k=TOP_K)
    rows = np.stack([a_row(2), a_row(3)])
    placement = Placement(model=model, num_nodes=NODES, gpus_per_node=GPUS, slots_per_gpu=SLOTS, phy2log_LP=rows)
    found = {
        choice: evaluate_steps(trace, [placement], step_tokens=(4, 32), replica_choice=choice)[0]
        for choice in ("min-nodes", "min-nodes-balanced", "min-nodes-step")
    }
    for drawn, balanced, shared in zip(*found.values(), strict=True):
        assert drawn.figures and balanced.figures and shared.figures
        assert shared.figures.sends.mean == pytest.approx(drawn.figures.sends.mean)
        best, even = shared.figures.best_split.mean, shared.figures.busiest_gpu.mean
        assert best - 1e-3 < even < min(drawn.figures.busiest_gpu.mean, balanced.figures.busiest_gpu.mean) - 0.02


def test_layers_of_too_many_groups_are_left_to_ranks() -> None:
    """An expert on every one of fifteen nodes has as many groups as ranks should not tell one another."""
    cluster = Cluster(num_nodes=15, gpus_per_node=1, slots_per_gpu=2)
    row = np.concatenate([np.zeros(15), np.arange(1, 16)]).reshape(2, 15).T.ravel().astype(np.int32)
    assert MOST_GROUPS < 2**15
    assert step_groups(layer_tables(row, 16, cluster)) is None
