"""Other sizes of cluster beside what else a map in use may be: of ranks in the engine's order, with wasted slots, with
layers that differ in slots."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from placement import Cluster, Model, Options, Placement, load_placement, open_trace, solve
from placement.core.migration import migration_plan
from placement.core.resize import Resize
from placement.documents.placement import PlacementFile, lost_before
from placement.errors import MapError
from placement.pipeline.solution import solution_document
from placement.testing.problems import all_maps

HOSTS = (0, 1, 1, 1, 0, 1, 0, 0)
DEALT = (0, 1, 2, 3, 0, 1, 2, 3)
EXPERTS = 8
MODEL = Model(name="m", layer_ids=(1, 4), num_experts=EXPERTS, top_k=2)


def on(hosts: tuple[int, ...], slots: int = 2) -> Cluster:
    nodes = max(hosts) + 1
    return Cluster(num_nodes=nodes, gpus_per_node=len(hosts) // nodes, slots_per_gpu=slots, rank_hosts=hosts)


def random_map(cluster: Cluster, seed: int, *, waste: bool = False) -> Placement:
    """Every expert somewhere; without `waste` none twice on a rank."""
    rng = np.random.default_rng(seed)
    rows: list[npt.NDArray[np.int64]] = []
    while len(rows) < MODEL.num_layers:
        more = rng.integers(0, EXPERTS, cluster.num_slots - EXPERTS)
        row = rng.permutation(np.concatenate([np.arange(EXPERTS), more]))
        if waste or all(len(set(one)) == len(one) for one in row.reshape(cluster.num_ranks, -1).tolist()):
            rows.append(row)
    return Placement(model=MODEL, **cluster.sizes(), phy2log_LP=np.stack(rows))


@pytest.mark.parametrize(
    ("old", "new", "lost", "ranks"),
    [
        (HOSTS, (*HOSTS, 2, 2, 2, 2), (), [*range(8), *[None] * 4]),  # a node more
        (HOSTS, DEALT, (), [*range(8)]),
        ((3, 1, 7, 0, 2, 6, 5, 4), (0, 1, 6, 2, 5, 4, 3), (2,), [0, 1, 3, 4, 5, 6, 7]),  # of eight nodes one
        (HOSTS, HOSTS, (4,), [0, 1, 2, 3, None, 5, 6, 7]),
        (HOSTS, (1, 0, 0, 1, 1, 0), (), [1, 0, 4, 2, 3, 6]),  # by node: 0, 4, 6 of [0, 4, 6, 7], 1 to 3 of [1, 2, 3, 5]
        (HOSTS, (1, 0, 0, 1, 1, 0), (0, 2), [1, 4, 6, 3, 5, 7]),
    ],
)
def test_all_numbers_are_the_engines(
    old: tuple[int, ...], new: tuple[int, ...], lost: tuple[int, ...], ranks: list[int | None]
) -> None:
    """Lost ranks, the old number of each rank and the copies: followed on the engine's map they make the new one."""
    current, cluster = random_map(on(old), 1), on(new)
    start = Resize.of(current, cluster, lost).start(np.ones((2, EXPERTS)))
    for target in (start, random_map(cluster, 2)):
        document = migration_plan(current, target, cluster, lost_ranks=lost).document()
        assert document["old_ranks"] == ranks
        before_LGS = current.engine_LP().reshape(2, -1, 2)
        now_LGS = np.full((2, len(new), 2), -1)
        for rank, was in enumerate(ranks):
            if was is not None:
                now_LGS[:, rank] = before_LGS[:, was]
        held_LGS = now_LGS.copy()
        for layer_id, slot, expert, source, rank in document["copies"]:
            layer = MODEL.layer_ids.index(layer_id)
            assert rank == slot // 2
            assert (source is None) == (expert not in held_LGS[layer])
            assert source is None or expert in held_LGS[layer, source]
            now_LGS[layer, rank, slot % 2] = expert
        assert np.array_equal(now_LGS.reshape(2, -1), target.engine_LP())
    fewest = [len(new) * 2 - sum(len(set(one)) - (-1 in one) for one in layer) for layer in held_LGS.tolist()]
    gone = [EXPERTS - len(set(layer.ravel().tolist()) - {-1}) for layer in held_LGS]
    assert Resize.of(current, cluster, lost).fewest_copies_L().tolist() == np.maximum(fewest, gone).tolist()


def test_a_scattered_cluster_loses_a_rank(tmp_path: Path, write_trace: Any, run_cli: Any) -> None:
    """solve and diff name the engine's ranks; the new file says which are gone; renamed, each
    rank holds the same."""
    trace = open_trace([write_trace(tmp_path / "t", num_layers=2, num_experts=EXPERTS, top_k=2, tokens=300).folder])
    now, new, named = (tmp_path / f"{name}.json" for name in ("now", "new", "named"))
    current = replace(random_map(on(HOSTS), 3), model=trace.model)
    PlacementFile.of(current).write(now)
    options = Options(work_limit=200, bound="none")
    solution = solve(trace, on(HOSTS), options, current=current, lost_ranks=(4,), holdout=0.0, workers=1)
    PlacementFile.model_validate(solution_document(solution)).write(new)
    told = json.loads(run_cli("diff", now, new, "--json").stdout)
    assert told["old_ranks"] == [0, 1, 2, 3, None, 5, 6, 7]
    assert lost_before(load_placement(now)[0], load_placement(new)[1]) == (4,)
    assert run_cli("diff", now, new, "--relabel", named).code == 0
    held = [np.sort(one.phy2log_LP.reshape(2, 8, 2)) for one in (load_placement(named)[0], solution.placement)]
    assert np.array_equal(*held)


def test_the_same_ranks_cannot_lie_elsewhere() -> None:
    """Of as many nodes and GPUs the lists must agree, whatever the slots: a forgotten list would misname all ranks."""
    current = random_map(on(HOSTS), 1)
    for slots in (2, 3):
        cluster = replace(on(HOSTS, slots), rank_hosts=())
        with pytest.raises(MapError, match="rank_hosts"):
            migration_plan(current, random_map(cluster, 2), cluster)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), ranks=st.integers(3, 5), slots=st.integers(2, 3), gone=st.booleans())
def test_wasted_slots_count_as_empty(seed: int, ranks: int, slots: int, gone: bool) -> None:
    """From a map that has experts twice on a rank, the start wastes nothing, and no such map needs fewer copies."""
    small = Model(name="m", layer_ids=(0,), num_experts=4, top_k=1)
    rng = np.random.default_rng(seed)
    row = rng.permutation(np.concatenate([np.arange(4), rng.integers(0, 4, 4)]))
    old = Placement(model=small, num_nodes=1, gpus_per_node=4, slots_per_gpu=2, phy2log_LP=row[None])
    cluster = Cluster(num_nodes=1, gpus_per_node=ranks, slots_per_gpu=slots)
    assume(ranks * slots <= 12 and old.wasted_LP().any())
    lost = (1,) if gone and ranks >= 3 else ()
    change = Resize.of(old, cluster, lost)
    assume(change.resized)
    start = change.start(rng.random((1, 4)))
    assert not start.wasted_LP().any()
    held = change.held_GE(0)
    fewest = min(int((~held[cluster.rank_of_slot_P(), one]).sum()) for one in all_maps(4, cluster.num_ranks, slots))
    assert migration_plan(old, start, cluster, lost_ranks=lost).num_moves == fewest
    assert change.fewest_copies_L().tolist() == [fewest]


def test_wasted_slots_are_no_reason_to_refuse_a_budget(tmp_path: Path, write_trace: Any) -> None:
    """In a cluster of the same size they may stay wasted; in another size they are filled."""
    trace = open_trace([write_trace(tmp_path / "t", num_layers=2, num_experts=EXPERTS, top_k=2, tokens=300).folder])
    cluster = Cluster(num_nodes=1, gpus_per_node=4, slots_per_gpu=3)
    current = replace(random_map(cluster, 5, waste=True), model=trace.model)
    assert current.wasted_LP().any()
    options = Options(work_limit=200, bound="none", max_moves=0)
    kept = solve(trace, cluster, options, current=current, holdout=0.0, workers=1)
    assert np.array_equal(kept.placement.phy2log_LP, current.phy2log_LP)
    assert next(iter(kept.maps)) == "current"
    larger = replace(cluster, gpus_per_node=5)
    filled = solve(trace, larger, replace(options, max_moves=None), current=current, holdout=0.0, workers=1)
    assert next(iter(filled.maps)) == "fewest-copies"
    assert not filled.placement.wasted_LP().any() and not filled.maps["fewest-copies"].wasted_LP().any()


def test_layers_that_differ_in_slots_are_refused(tmp_path: Path, write_trace: Any) -> None:
    """A change of size needs as many slots in every layer, as any change does: nothing is taken for an expert."""
    trace = open_trace([write_trace(tmp_path / "t", num_layers=2, num_experts=EXPERTS, top_k=2, tokens=300).folder])
    cluster = Cluster(num_nodes=1, gpus_per_node=4, slots_per_gpu=3)
    rows = np.array([[0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 0], [0, 1, -1, 2, 3, -1, 4, 5, -1, 6, 7, -1]])
    current = Placement(model=trace.model, **cluster.sizes(), phy2log_LP=rows)
    larger = replace(cluster, gpus_per_node=5)
    with pytest.raises(MapError, match="slots of a GPU differ"):
        solve(trace, larger, Options(work_limit=10, bound="none"), current=current, holdout=0.0, workers=1)
    with pytest.raises(MapError, match="slots of a GPU differ"):
        migration_plan(current, replace(random_map(larger, 1), model=trace.model), larger)
