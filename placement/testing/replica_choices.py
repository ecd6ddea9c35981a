"""The contract of a replica choice, as tests: inherit `ReplicaChoiceContract` and pytest runs it on your choice.

Example::

    class TestMine(ReplicaChoiceContract):
        @pytest.fixture
        def choice(self):
            return Mine()

Works with any choice of the protocol in `placement.cost.choices.base`; needs no choice to be registered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from placement.core.choices import TRANSPORT
from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.core.placement import Placement, wasted_P
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.choices.base import LayerCost, LayerTokens, ReplicaChoice
from placement.cost.cost_layer import cost_layer, home_coster
from placement.cost.transport import fare_HX
from placement.support.registry import attribute

EXPERTS, TOP_K, TIMES = 7, 3, 400
SHAPES = ((1, 2, 5), (2, 2, 3), (3, 1, 4), (4, 2, 2), (8, 1, 2))  # nodes, GPUs of a node, slots of a GPU
Slots = npt.NDArray[np.int32]


class ReplicaChoiceContract:
    """What every replica choice must do. Give a fixture `choice`; test with small maps of 1 to 8 nodes."""

    def test_drawn_slots_hold_the_expert(self, choice: ReplicaChoice) -> None:
        """An id below 0 gets no slot; the same tokens get the same slots, in one call or in several."""
        for cluster, row in maps():
            ids_TK = tokens(50)
            ids_TK[np.random.default_rng(0).random(ids_TK.shape) < 0.2] = -1
            for rank in (0, cluster.num_ranks - 1):
                slot_TK = drawn(choice, cluster, row, rank, ids_TK)
                assert (np.where(slot_TK < 0, -1, row[slot_TK]) == ids_TK).all()
                parts = drawn(choice, cluster, row, rank, *np.split(ids_TK, [20, 20]))
                assert parts.tolist() == slot_TK.tolist()

    def test_cost_is_the_mean_of_what_is_drawn(self, choice: ReplicaChoice) -> None:
        """Load of every slot, copies for every node and rank: few sets, each drawn very often, at a known home.

        The ranks of the home have the same tokens each, which come in a mixed order.
        """
        for cluster, row in maps():
            few, home = tokens(6), cluster.num_nodes - 1
            ids_TK = np.random.default_rng(1).permutation(np.tile(few, (TIMES, 1)))
            ranks = range(home * cluster.gpus_per_node, cluster.num_ranks)
            counts = [totals(cluster, drawn(choice, cluster, row, rank, ids_TK)) for rank in ranks]
            load_P, node_N, rank_G = (np.mean(of_ranks, axis=0) for of_ranks in zip(*counts, strict=True))
            layer = cost(choice, cluster, row, ids_TK, home)
            for counted, expected in (
                (load_P, layer.load_P),
                (node_N, layer.traffic.node_HN[home]),
                (rank_G, layer.traffic.rank_HG[home]),
            ):
                assert counted / TIMES == pytest.approx(expected / TIMES, abs=4 * np.sqrt(len(few) / 4 / TIMES))

    def test_unknown_homes_are_the_mean_over_all_nodes(self, choice: ReplicaChoice) -> None:
        """Of sends and loads, whether links are alike or differ, and each token counts as often as it is told to."""
        if choice.in_order:
            pytest.skip("the tokens so far decide too, and those of every home")
        for cluster, row in maps():
            ids_TK = tokens(30)
            layers = [cost(choice, cluster, row, ids_TK, home) for home in range(cluster.num_nodes)]
            load_P = np.mean([layer.load_P for layer in layers], axis=0)
            leaving_3 = np.mean([layer.traffic.leaving_3() for layer in layers], axis=0)
            for alike in (True, False):
                layer = cost(choice, cluster, row, ids_TK, -1, links_alike=alike, count=3)
                np.testing.assert_allclose(layer.load_P, 3 * load_P, atol=1e-9)
                np.testing.assert_allclose(layer.traffic.leaving_3(), 3 * leaving_3, atol=1e-9)

    def test_sends_are_never_below_the_least(self, choice: ReplicaChoice) -> None:
        """No fewer nodes than a smallest cover of the experts that the home does not host; every assignment served."""
        for cluster, row in maps():
            ids_TK = tokens(30)
            for home in range(cluster.num_nodes):
                layer = cost(choice, cluster, row, ids_TK, home)
                least = sum(fewest_nodes(cluster, row, [e for e in ids if e >= 0], home) for ids in ids_TK.tolist())
                assert layer.traffic.leaving_3()[0] >= least - 1e-9
                assert layer.load_P.sum() == pytest.approx((ids_TK >= 0).sum())

    @pytest.mark.parametrize("size", [0, 1, TOP_K - 1])
    def test_a_short_set_costs_what_its_experts_cost(self, choice: ReplicaChoice, size: int) -> None:
        """Places without an expert change nothing, neither of costs nor of slots; a set without any costs nothing."""
        for cluster, row in maps():
            ids_TK = np.ascontiguousarray(tokens(30, sizes=[TOP_K])[:, :size])
            short_TK = np.pad(ids_TK, ((0, 0), (0, TOP_K - size)), constant_values=-1)
            slot_TK = drawn(choice, cluster, row, 0, short_TK)
            assert slot_TK[:, :size].tolist() == drawn(choice, cluster, row, 0, ids_TK).tolist()
            for home in (-1, 0, cluster.num_nodes - 1):
                short = cost(choice, cluster, row, short_TK, home)
                if size == 0:
                    assert not short.load_P.any() and not short.traffic.leaving_3().any()
                    continue
                full = cost(choice, cluster, row, ids_TK.astype(np.uint8), home)
                np.testing.assert_array_equal(short.load_P, full.load_P)
                np.testing.assert_array_equal(short.traffic.leaving_3(), full.traffic.leaving_3())

    def test_where_experts_have_one_copy_there_is_no_choice(self, choice: ReplicaChoice) -> None:
        """The same cost as under every other choice."""
        cluster, row = Cluster(num_nodes=2, gpus_per_node=2, slots_per_gpu=2), np.arange(8, dtype=np.int32)
        ids_TK = tokens(30)
        for home in (-1, 1):
            mine, single = (cost(choice, cluster, row, ids_TK, home, by_door=by_door) for by_door in (False, True))
            np.testing.assert_allclose(mine.load_P, single.load_P)
            np.testing.assert_allclose(mine.traffic.leaving_3(), single.traffic.leaving_3())

    def test_homes_cost_what_tokens_send_from_them(self, choice: ReplicaChoice) -> None:
        """Grouping weighs homes by the copies for nodes, and by assignments, that the cost counts."""
        for cluster, row in maps():
            ids_TK, nodes, layer = tokens(30), cluster.num_nodes, cost(choice, cluster, row, tokens(1), 0)
            for kind, (transport, distinct) in {0: ("node", True), 2: ("assignment", False)}.items():
                book = home_coster(layer.tables, choice, cluster, fare_HX(cluster, transport), distinct)
                cost_QN, saved_EN = np.zeros((1, nodes)), np.zeros((EXPERTS, nodes))
                book(ids_TK, np.zeros(len(ids_TK), dtype=np.int32), cost_QN, saved_EN)
                homes = [cost(choice, cluster, row, ids_TK, home).traffic.leaving_3()[kind] for home in range(nodes)]
                if distinct or not choice.in_order:
                    np.testing.assert_allclose(cost_QN[0], homes, atol=1e-9)

    def test_on_a_device_slots_are_those_of_the_host(self, choice: ReplicaChoice) -> None:
        """In torch, on the CPU, over several calls; a choice without a device's form is left out."""
        torch = pytest.importorskip("torch")
        from placement.runtime.layer_map import LayerMap

        for cluster, row in maps():
            where = choice.on_device(cluster.num_nodes)
            if where is None:
                continue
            layer_map = LayerMap.of(placement_of(cluster, row), 0)
            rank, parts = cluster.num_ranks - 1, np.split(tokens(60), [25, 25])
            on_device = attribute(where)(layer_map, rank, choice, cluster, torch.device("cpu"))
            slots = np.concatenate([on_device(torch.from_numpy(part)).numpy() for part in parts])
            assert slots.tolist() == drawn(choice, cluster, row, rank, *parts).tolist()

    def test_is_named_and_has_a_stand_in(self, choice: ReplicaChoice) -> None:
        """A choice that depends on the order of tokens names one that does not; its kernels can be compiled ahead."""
        assert choice.name and choice.kernels(2)
        if choice.in_order:
            assert choice.without_order is not None
            assert not REPLICA_CHOICES.make(choice.without_order).in_order
        else:
            assert choice.without_order is None


def maps() -> Iterator[tuple[Cluster, Slots]]:
    """Small clusters, two maps for each in which most experts have several copies: in the second on one rank too."""
    for (seed, (nodes, gpus, slots)), wasted in product(enumerate(SHAPES), (False, True)):
        cluster, rng = Cluster(num_nodes=nodes, gpus_per_node=gpus, slots_per_gpu=slots), np.random.default_rng(seed)
        while True:
            more = rng.integers(0, EXPERTS, cluster.num_slots - EXPERTS)
            row = rng.permutation(np.concatenate([np.arange(EXPERTS), more])).astype(np.int32)
            if wasted_P(row, cluster.num_ranks).any() == wasted:
                break
        yield cluster, row


def tokens(size: int, sizes: Sequence[int] = range(TOP_K, -1, -1)) -> npt.NDArray[np.int64]:
    """Top-k sets at random of these sizes in turn, int64 [T, K]: full and short ones, and some without any expert."""
    ids_TK = np.argsort(np.random.default_rng(size).random((size, EXPERTS)), axis=1)[:, :TOP_K]
    return np.where(np.arange(TOP_K) < np.resize(sizes, size)[:, None], ids_TK, -1)


def placement_of(cluster: Cluster, row: Slots) -> Placement:
    return Placement(
        model=Model(name="m", layer_ids=(0,), num_experts=EXPERTS, top_k=TOP_K),
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        slots_per_gpu=cluster.slots_per_gpu,
        phy2log_LP=row[None],
    )


def drawn(choice: ReplicaChoice, cluster: Cluster, row: Slots, rank: int, *parts: npt.NDArray[np.int64]) -> Slots:
    """Slots of the tokens of all parts, each part in a call of its own."""
    layer = LayerCost.start(row, EXPERTS, cluster, TRANSPORT)
    draw, slots = choice.drawer(layer.tables, rank, cluster), [np.empty(part.shape, dtype=np.int32) for part in parts]
    for part, slot_TK in zip(parts, slots, strict=True):
        draw(part, layer.running, slot_TK)
    return np.concatenate(slots)


def cost(
    choice: ReplicaChoice,
    cluster: Cluster,
    row: Slots,
    ids_TK: npt.NDArray[Any],
    home: int,
    *,
    links_alike: bool = True,
    count: int = 1,
    by_door: bool = False,
) -> LayerCost:
    """Of tokens with this home, each so many times; `by_door`: by way of `cost_layer`."""
    layer = LayerCost.start(row, int(row.max()) + 1, cluster, TRANSPORT)._replace(links_alike=links_alike)
    count_T, home_T = np.full(len(ids_TK), count), np.full(len(ids_TK), home, dtype=np.int32)
    ids_UK = ids_TK if ids_TK.dtype.kind == "u" else ids_TK.astype(np.int32)  # as traces and as solvers have them
    given = LayerTokens(ids_UK, count_T, home_T, home < 0)
    if by_door:
        cost_layer(given, choice, layer)
    else:
        choice.cost(given, layer)
    return layer


def totals(cluster: Cluster, slot_TK: Slots) -> tuple[Any, Any, Any]:
    """Assignments of every slot, and copies for every node and rank."""
    node_N, rank_G = np.zeros(cluster.num_nodes), np.zeros(cluster.num_ranks)
    for slots in slot_TK:
        rank_M = slots[slots >= 0] // cluster.slots_per_gpu
        rank_G[np.unique(rank_M)] += 1
        node_N[np.unique(rank_M // cluster.gpus_per_node)] += 1
    return np.bincount(slot_TK[slot_TK >= 0], minlength=cluster.num_slots), node_N, rank_G


def fewest_nodes(cluster: Cluster, row: Slots, ids: list[int], home: int) -> int:
    """The least number of further nodes that host what the home does not, by trying all sets of nodes."""
    hosts = [{int(p) // cluster.slots_per_node for p in np.flatnonzero(row == e)} for e in ids]
    nodes = range(cluster.num_nodes)
    return next(
        size
        for size in range(len(ids) + 1)
        if any(all(host & {home, *further} for host in hosts) for further in combinations(nodes, size))
    )
