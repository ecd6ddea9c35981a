"""The rules of engines: what is evaluated is what plain Python makes of the same tokens, rank by rank or row by row.

The functions here are written from the engines' sources and share no code with the library; `tests/engines` has the
engines' own.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from math import lcm

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from placement import Cluster, Model, Placement
from placement.cost.meter import Meter

RULES = ("vllm-hash", "sglang-static", "sglang-dynamic", "ascend-rank")
Chances = dict[int, float]  # of slots


@dataclass(frozen=True)
class Engine:
    """A map of all hidden layers as an engine has it: its own numbers of ranks and slots."""

    rows: list[list[int]]
    nodes: int
    gpus: int
    slots: int

    def slots_of(self, layer: int, expert: int) -> list[int]:
        return [slot for slot, held in enumerate(self.rows[layer]) if held == expert]

    def nearest(self, layer: int, expert: int, rank: int) -> int | None:
        """SGLang's `_find_nearest_expert`."""
        found = self.slots_of(layer, expert)
        if len(found) == 1:
            return found[0]
        own = [slot for slot in found if slot // self.slots == rank]
        if own:
            return own[0]
        near = [slot for slot in found if slot // self.slots // self.gpus == rank // self.gpus]
        return near[0] if 0 < len(near) < len(found) else None

    def table(self, experts: int, own: int) -> list[list[int]]:
        """SGLang's static table on rank `own`, which has no slots but the nearest left where there is one."""
        stream, table = random.Random(42), [[-1] * experts for _ in self.rows]
        for layer in range(len(self.rows)):
            for expert in range(experts):
                nearest = self.nearest(layer, expert, own)
                if nearest is not None:
                    table[layer][expert] = nearest
                    continue
                ranks = range(self.nodes * self.gpus)
                left = [rank for rank in ranks if self.nearest(layer, expert, rank) is None]
                found = self.slots_of(layer, expert)
                times, rest = divmod(len(left), len(found))
                picks = found * times + stream.sample(found, k=rest)
                stream.shuffle(picks)
                table[layer][expert] = picks[left.index(own)]
        return table

    def worlds(self, rule: str, layer: int, experts: list[int], rank: int, total: int) -> Iterator[list[Chances]]:
        """All alike likely: for each expert, the chances of the slots that serve it, independent of each other."""
        found = {expert: self.slots_of(layer, expert) for expert in experts}
        if rule == "vllm-hash":
            for value in range(lcm(*(len(slots) for slots in found.values()))):
                yield [{found[expert][value % len(found[expert])]: 1.0} for expert in experts]
        elif rule == "ascend-rank":
            chosen = []
            for expert in experts:
                first = {slot // self.slots: slot for slot in reversed(found[expert])}
                listed = [first[holder] for holder in sorted(first)]
                chosen.append({listed[rank % len(listed)]: 1.0})
            yield chosen
        elif rule == "sglang-static":
            table = self.table(total, rank)
            yield [{table[layer][expert]: 1.0} for expert in experts]
        else:
            near = {expert: self.nearest(layer, expert, rank) for expert in experts}
            yield [
                {slot: 1 / len(found[e]) for slot in found[e]} if near[e] is None else {near[e]: 1.0} for e in experts
            ]


@dataclass(frozen=True)
class Case:
    cluster: Cluster
    placement: Placement
    ids_LTK: np.ndarray
    home_T: np.ndarray
    rule: str


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Small maps with many copies, on some ranks twice, of ranks that the engine numbers node by node or otherwise."""
    nodes, gpus, slots = draw(st.sampled_from([(1, 3, 3), (2, 2, 3), (3, 2, 2), (4, 2, 2), (2, 4, 2), (5, 1, 3)]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    hosts = np.repeat(np.arange(nodes), gpus)
    hosts = tuple(rng.permutation(hosts).tolist()) if draw(st.booleans()) else ()
    cluster = Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots, rank_hosts=hosts)
    experts, top_k = draw(st.integers(3, min(6, cluster.num_slots))), draw(st.integers(1, 3))
    layer_ids = draw(st.sampled_from([(0,), (0, 1), (1, 3)]))
    model = Model(name="m", layer_ids=layer_ids, num_experts=experts, top_k=top_k, num_hidden_layers=4)
    more = cluster.num_slots - experts
    rows = [rng.permutation([*range(experts), *rng.integers(0, experts, more)]) for _ in layer_ids]
    placement = Placement(model=model, **cluster.sizes(), phy2log_LP=np.array(rows, dtype=np.int32))
    ids_LTK = np.argsort(rng.random((len(layer_ids), 5, experts)), axis=2)[:, :, :top_k]
    home_T = rng.integers(-1 if draw(st.booleans()) else 0, nodes, 5).astype(np.int32)
    return Case(cluster, placement, ids_LTK, home_T, draw(st.sampled_from(RULES)))


@settings(max_examples=150, deadline=None)
@given(case=cases(), transport=st.sampled_from(["node", "rank", "assignment"]))
def test_sends_and_loads_are_those_of_a_replay(case: Case, transport: str) -> None:
    """Copies for nodes and ranks, assignments and the load of every rank, in every layer."""
    cluster, placement = case.cluster, case.placement
    meter = Meter(placement.model, [placement], [cluster], case.rule, transport, homes_are_random=False)
    meter.add(case.home_T, lambda layer: np.ascontiguousarray(case.ids_LTK[layer]).astype(np.int16), None)
    rows_HP = np.tile(np.arange(cluster.num_slots) % placement.model.num_experts, (4, 1))
    rows_HP[list(placement.model.layer_ids)] = placement.engine_LP()
    engine = Engine(rows_HP.tolist(), *cluster.shape)
    hosts = list(cluster.rank_hosts) or np.repeat(np.arange(cluster.num_nodes), cluster.gpus_per_node).tolist()
    for layer, row in enumerate(placement.model.layer_ids):
        load_G, leaving = np.zeros(cluster.num_ranks), np.zeros(3)
        for ids, home in zip(case.ids_LTK[layer].tolist(), case.home_T.tolist(), strict=True):
            sources = [rank for rank, host in enumerate(hosts) if home in (-1, host)]
            for rank in sources:
                worlds = list(engine.worlds(case.rule, row, ids, rank, placement.model.num_experts))
                for chances in worlds:
                    weight = 1 / (len(sources) * len(worlds))
                    for of_slot in chances:
                        for slot, chance in of_slot.items():
                            load_G[slot // cluster.slots_per_gpu] += weight * chance
                    leaving += weight * np.array(_leaving(chances, hosts, hosts[rank], cluster.slots_per_gpu))
        counted = meter.traffic[0][layer].leaving_3()
        np.testing.assert_allclose(counted, leaving, atol=1e-9)
        by_rank_G = meter.loads[0][layer].reshape(cluster.num_ranks, -1).sum(axis=1)
        np.testing.assert_allclose(by_rank_G[np.argsort(cluster.engine_rank_G())], load_G, atol=1e-9)


def _leaving(chances: list[Chances], hosts: list[int], home: int, slots: int) -> tuple[float, float, float]:
    """Expected copies for distinct remote nodes, for distinct remote ranks, and remote assignments."""
    nodes, ranks, remote = 0.0, 0.0, 0.0
    for node in set(hosts) - {home}:
        miss = 1.0
        for of_slot in chances:
            here = sum(chance for slot, chance in of_slot.items() if hosts[slot // slots] == node)
            miss, remote = miss * (1 - here), remote + here
        nodes += 1 - miss
    for rank in range(len(hosts)):
        miss = 1.0
        for of_slot in chances:
            miss *= 1 - sum(chance for slot, chance in of_slot.items() if slot // slots == rank)
        ranks += (1 - miss) if hosts[rank] != home else 0.0
    return nodes, ranks, remote


def test_many_residues_are_sampled_and_said(caplog: pytest.LogCaptureFixture) -> None:
    """Counts of replicas with a common multiple above 2520: the first 2520 rows stand for all, which is said."""
    counts = [7, 8, 9, 11, 13]
    row = np.repeat(np.arange(len(counts)), counts).astype(np.int32)
    cluster = Cluster(num_nodes=2, gpus_per_node=24, slots_per_gpu=1)
    placement = Placement(
        model=Model(name="m", layer_ids=(0,), num_experts=5, top_k=5), **cluster.sizes(), phy2log_LP=row[None]
    )
    meter = Meter(placement.model, [placement], [cluster], "vllm-hash", "node", homes_are_random=True)
    ids_TK = np.arange(5, dtype=np.uint8)[None].repeat(3, axis=0)
    meter.add(np.full(3, -1, dtype=np.int32), lambda _: ids_TK, None)
    assert "3 tokens have experts" in caplog.text
    load_P = np.zeros(48)
    for token_row in range(2520):
        value = token_row * 2654435769 % 2**32
        for expert, count in enumerate(counts):
            load_P[int(np.flatnonzero(row == expert)[value % count])] += 3 / 2520
    np.testing.assert_allclose(meter.loads[0][0], load_P)
    even_P = 3 / np.repeat(counts, counts)
    np.testing.assert_allclose(load_P, even_P, rtol=0.05)
