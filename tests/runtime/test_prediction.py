"""The runtime sends what the cost model says, copy by copy and byte by byte, and serves where it says."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from moe import make_placement, make_tokens, torch

from placement import Cluster, Placement, evaluate, open_trace
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.choices.base import LayerCost, LayerTokens
from placement.cost.kernel_balanced import RunningLoad, cost_balanced
from placement.cost.traffic import Traffic
from placement.runtime import CapacityPolicy, Dispatcher, LayerMap, Lockstep, Mesh, MoELayer, ReplicaChooser
from placement.runtime.decision import RankCapacity
from placement.runtime.wire import Wire

NODES, GPUS, SLOTS, EXPERTS, TOP_K, HIDDEN = 4, 2, 3, 16, 4, 32
WIRE = Wire(hidden=HIDDEN, dtype=torch.bfloat16, width=TOP_K)


def counted_bytes(placement: Placement, ids_TK: Any, rank_T: Any, *, hops: str, choice: str) -> tuple[int, int]:
    """Bytes between nodes and inside them that all ranks sent in one layer."""
    layer_map = LayerMap.of(placement, 0)

    def program(mesh: Mesh) -> tuple[int, int]:
        ids = torch.from_numpy(ids_TK[rank_T == mesh.rank])
        x = torch.zeros(len(ids), HIDDEN, dtype=torch.bfloat16)
        dispatcher = Dispatcher(mesh, layer_map, hops=hops, choice=choice)
        rows, _, handle = dispatcher.dispatch(x, ids, torch.ones(ids.shape))
        dispatcher.combine(rows, handle)
        return handle.sent_bytes(GPUS, mesh.rank)

    across, within = zip(*Lockstep(NODES, GPUS).run(program), strict=True)
    return sum(across), sum(within)


@pytest.mark.parametrize("slots", [2, 3])
@pytest.mark.parametrize("choice", ["min-nodes", "min-nodes-balanced", "local-first"])
def test_bytes_are_those_of_an_evaluation(slots: int, choice: str, tmp_path: Path, write_trace: Any) -> None:
    """With the home of every request given: by distinct nodes, by distinct ranks, with replicas and without."""
    written = write_trace(
        tmp_path / "t", num_layers=1, num_experts=EXPERTS, top_k=TOP_K, tokens=800, requests=24, seed=3
    )
    trace = open_trace(written.folder)
    placement = make_placement(NODES, GPUS, slots, EXPERTS, TOP_K)
    rank_Q = np.random.default_rng(0).integers(0, NODES * GPUS, len(trace.requests))
    request_T = np.concatenate([block.request_T for block in trace.blocks()])
    ids_TK = np.concatenate([block.ids_TK(0) for block in trace.blocks()]).astype(np.int64)
    cluster = Cluster(
        num_nodes=NODES,
        gpus_per_node=GPUS,
        slots_per_gpu=slots,
        dispatch_bytes=WIRE.row_bytes,
        combine_bytes=WIRE.return_bytes,
    )
    for transport, hops in (("node", "hierarchical"), ("rank", "flat")):
        predicted = evaluate(
            trace,
            [placement],
            cluster=cluster,
            replica_choice=choice,
            transport=transport,
            home_Q=(rank_Q // GPUS).astype(np.int32),
        )[0]
        across, _ = counted_bytes(placement, ids_TK, rank_Q[request_T], hops=hops, choice=choice)
        by_chance = slots > 2 and (choice == "local-first" or transport == "rank")
        bound = 0.02 if by_chance else 1e-9  # an expectation, and what was drawn; else the same number
        assert across == pytest.approx(predicted.bytes_per_token() * predicted.num_tokens, rel=bound)


@pytest.mark.parametrize("gamma", [0.5, 1e5])
@pytest.mark.parametrize("mode", ["drop", "expanded"])
@pytest.mark.parametrize("hops", ["flat", "hierarchical"])
def test_bytes_under_a_capacity(hops: str, mode: str, gamma: float) -> None:
    """Further experts are on the token's own rank and move no copy: their places widen the row, no more. Without drops
    the copies are those of no policy; with drops those of what is left, counted here token by token."""
    placement, extra = make_placement(NODES, GPUS, SLOTS, EXPERTS, TOP_K), 2 * (mode == "expanded")
    layer_map = LayerMap.of(placement, 0)
    policy = CapacityPolicy(mode=mode, gamma=gamma, max_extra=2)
    tokens = make_tokens([40] * (NODES * GPUS), EXPERTS, TOP_K, hidden=HIDDEN, dtype=torch.bfloat16)
    wire = replace(WIRE, width=TOP_K + extra)
    per = GPUS * SLOTS if hops == "hierarchical" else SLOTS  # slots behind one copy

    def program(mesh: Mesh) -> tuple[int, int, int]:
        mine, counted = tokens[mesh.rank], []
        for way in (policy, CapacityPolicy()):
            layer = MoELayer(Dispatcher(mesh, layer_map, hops=hops), lambda rows, counts: rows, way)
            counted.append(layer(mine.x, mine.ids, mine.weights, mine.scores)[1].across_bytes)
        slots = Dispatcher(mesh, layer_map, hops=hops).choose(mine.ids)
        left = RankCapacity(policy, layer_map, mesh.world).decide(mine.ids, slots, mine.weights, mine.scores).slots
        home = mesh.rank // GPUS
        copies = sum(len({s // per for s in row if s >= 0 and s // (GPUS * SLOTS) != home}) for row in left.tolist())
        return (*counted, copies)

    for limited, unlimited, copies in Lockstep(NODES, GPUS).run(program):
        assert limited == copies * (wire.row_bytes + wire.return_bytes)
        same = unlimited // (WIRE.row_bytes + WIRE.return_bytes)
        assert copies == same if gamma > 1e4 else copies < same


def sets(seed: int, tokens: int) -> Any:
    rng = np.random.default_rng(seed)
    return np.argsort(rng.gumbel(size=(tokens, EXPERTS)) + np.linspace(0, 2, EXPERTS), axis=1)[:, :TOP_K].astype(
        np.int64
    )


def totals(slot_TK: Any, home: int, num_slots: int) -> tuple[Any, Any, Any]:
    """Load of every slot; copies for every node and rank."""
    load = np.bincount(slot_TK.ravel(), minlength=num_slots)
    rank_TK = slot_TK // SLOTS
    copies_G = sum(np.bincount(np.unique(row), minlength=NODES * GPUS) for row in rank_TK)
    copies_N = sum(np.bincount(np.unique(row // GPUS), minlength=NODES) for row in rank_TK)
    return load, copies_N, copies_G


@pytest.mark.parametrize("seed", range(3))
def test_balanced_choice_is_the_kernels_own(seed: int) -> None:
    """Slot by slot the same loads and copies as the cost kernel, over several calls and windows, unequal speeds."""
    layer_map = LayerMap.of(make_placement(NODES, GPUS, SLOTS, EXPERTS, TOP_K, seed=seed), 0)
    speeds = tuple(np.random.default_rng(seed).uniform(0.5, 2, NODES * GPUS).tolist())
    cluster = Cluster(num_nodes=NODES, gpus_per_node=GPUS, slots_per_gpu=SLOTS, gpu_speeds=speeds)
    ids_TK, rank = sets(seed, 900), 5
    choose = ReplicaChooser(layer_map, rank, "min-nodes-balanced", cluster=cluster)
    slot_TK = torch.cat([choose(torch.from_numpy(part)) for part in np.array_split(ids_TK, 7)]).numpy()
    traffic, load_P = Traffic.start(NODES, NODES * GPUS), np.zeros(layer_map.num_slots)
    running = RunningLoad.start(cluster)
    cost_balanced(ids_TK, np.full(len(ids_TK), rank // GPUS, np.int32), layer_map.tables, traffic, load_P, running)
    load, copies_N, copies_G = totals(slot_TK, rank // GPUS, layer_map.num_slots)
    assert load.tolist() == load_P.tolist()
    assert copies_N.tolist() == traffic.node_HN[rank // GPUS].tolist()
    assert copies_G.tolist() == traffic.rank_HG[rank // GPUS].tolist()


@pytest.mark.parametrize("choice", ["min-nodes", "local-first", "uniform"])
def test_what_is_drawn_is_on_average_what_the_cost_model_expects(choice: str) -> None:
    """Few sets, each drawn 500 times: every slot's load and every rank's copies come close to the expectation."""
    layer_map = LayerMap.of(make_placement(NODES, GPUS, SLOTS, EXPERTS, TOP_K, seed=1), 0)
    few, rank, times = sets(1, 40), 3, 500
    ids_TK = np.tile(few, (times, 1))
    slot_TK = ReplicaChooser(layer_map, rank, choice)(torch.from_numpy(ids_TK)).numpy()
    assert (np.asarray(layer_map.logical_P)[slot_TK] == ids_TK).all()
    want = expected(few, rank // GPUS, choice, layer_map)
    got = totals(slot_TK, rank // GPUS, layer_map.num_slots)
    for counted, predicted in zip(got, want, strict=True):
        assert counted / times == pytest.approx(predicted, abs=4 * np.sqrt(len(few) / 4 / times))
    again = ReplicaChooser(layer_map, rank, choice)(torch.from_numpy(ids_TK)).numpy()
    assert (again == slot_TK).all()


def expected(ids_TK: Any, home: int, choice: str, layer_map: LayerMap) -> tuple[Any, Any, Any]:
    once, homes = np.ones(len(ids_TK), np.int64), np.full(len(ids_TK), home, np.int32)
    layer = LayerCost.start(np.array(layer_map.logical_P), EXPERTS, layer_map.cluster(), "node")
    REPLICA_CHOICES.make(choice).cost(LayerTokens(ids_TK, once, homes, False), layer)
    return layer.load_P, layer.traffic.node_HN[home], layer.traffic.rank_HG[home]


REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "gptoss20b"


@pytest.mark.skipif(not REAL.exists(), reason="the real trace gptoss20b is not here")
def test_bytes_of_a_real_trace() -> None:
    """Every token of one layer, in batches of 1024 a rank, 8 redundant experts: not one byte more or less."""
    trace = open_trace(REAL)
    placement = make_placement(NODES, GPUS, 5, 32, 4, layers=trace.model.num_layers)
    placement = replace(placement, model=trace.model)
    rank_Q = np.random.default_rng(0).integers(0, NODES * GPUS, len(trace.requests))
    rank_T = rank_Q[np.concatenate([block.request_T for block in trace.blocks()])]
    ids_TK = np.concatenate([block.ids_TK(0) for block in trace.blocks()]).astype(np.int64)
    by_rank = [torch.from_numpy(ids_TK[rank_T == rank]).split(1024) for rank in range(NODES * GPUS)]
    layer_map = LayerMap.of(placement, trace.model.layer_ids[0])

    def program(mesh: Mesh) -> int:
        dispatcher, sent = Dispatcher(mesh, layer_map, hops="hierarchical"), 0
        for step in range(max(map(len, by_rank))):
            ids = by_rank[mesh.rank][step] if step < len(by_rank[mesh.rank]) else by_rank[mesh.rank][0][:0]
            arrival = dispatcher.send(
                torch.zeros(len(ids), 8, dtype=torch.bfloat16), dispatcher.choose(ids), torch.ones(ids.shape)
            )
            copies = dispatcher.by_slot(arrival)[2].copies(0)
            sent += sum(n for rank, n in copies.items() if rank // GPUS != mesh.rank // GPUS)
        return sent

    predicted = evaluate(trace, [placement], home_Q=(rank_Q // GPUS).astype(np.int32))[0]
    assert sum(Lockstep(NODES, GPUS).run(program)) == round(float(predicted.node_sends_L[0]) * len(ids_TK))
