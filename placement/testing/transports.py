"""The contract of a transport, as tests: inherit `TransportContract` and pytest runs it on your transport.

Example::

    class TestMine(TransportContract):
        @pytest.fixture
        def transport(self):
            return Mine()

        def units(self, rank_K, cluster, home):
            return ...  # the node or rank of every copy that a token sends which these ranks serve

Works with any transport of `placement.cost.transports.base`; needs no transport to be registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from placement.core.choices import REPLICA_CHOICE, TRANSPORT
from placement.core.cluster import Cluster
from placement.core.topology import EVEN, Level, Topology
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.choices.base import LayerCost, LayerTokens
from placement.cost.cost_layer import cost_layer
from placement.cost.transports.base import Transport

EXPERTS, TOP_K = 16, 4
COSTS = tuple(tuple(0.0 if a == b else 1.0 + (a + 2 * b) % 3 for b in range(8)) for a in range(8))
TOPOLOGIES = {
    "even": EVEN,
    "unequal nodes": Topology(node_gbps=(400.0, 100.0, 200.0, 400.0)),
    "racks": Topology(levels=(Level(name="rack", nodes=2, gbps=50.0),)),
    "costs": Topology(rank_cost=COSTS),
}


class TransportContract:
    """What every transport must do. Give a fixture `transport`, and `units`."""

    def units(self, rank_K: Sequence[int], cluster: Cluster, home: int) -> Sequence[int]:
        """The node or rank, as `fare_HX` counts them, of every copy of a token; `rank_K` serve its experts, if any."""
        raise NotImplementedError

    def test_fares_are_costs_of_links(self, transport: Transport) -> None:
        """One row a home, one column a node or rank; nothing is paid within a node of even links."""
        for cluster in clusters().values():
            fare_HX = transport.fare_HX(cluster)
            assert fare_HX.shape[0] == cluster.num_nodes and fare_HX.shape[1] in (cluster.num_nodes, cluster.num_ranks)
            assert np.isfinite(fare_HX).all() and (fare_HX >= 0).all()
        remote_HX = transport.fare_HX(clusters()["even"]).reshape(4, 4, -1)
        assert (remote_HX == (1 - np.eye(4))[:, :, None]).all()

    @pytest.mark.parametrize("short", [False, True])
    @pytest.mark.parametrize("homes", [[-1], [0], [3], [2, -1, 0, 0, 1]])
    def test_cost_is_the_price_of_every_copy(self, transport: Transport, homes: list[int], short: bool) -> None:
        """Token by token and copy by copy, on every topology; a home that is unknown is the mean over all."""
        for name, cluster in clusters().items():
            ids_TK = np.argsort(np.random.default_rng(0).random((40, EXPERTS)), axis=1)[:, :TOP_K].astype(np.uint8)
            if short:
                ids_TK = np.where(np.arange(TOP_K) < np.arange(40)[:, None] % (TOP_K + 1), ids_TK.astype(np.int16), -1)
            home_T = np.resize(np.array(homes, dtype=np.int32), len(ids_TK))
            layer, fare_HX = _cost(cluster, ids_TK, home_T), transport.fare_HX(cluster)
            prices = [
                np.mean([sum(fare_HX[at, unit] for unit in self.units(ranks, cluster, at)) for at in possible])
                for ranks, possible in zip(_ranks(cluster, ids_TK), _homes(cluster, home_T), strict=True)
            ]
            assert transport.cost(layer.traffic, fare_HX, len(ids_TK)) == pytest.approx(np.mean(prices)), name

    def test_bytes_are_those_of_copies_between_nodes(self, transport: Transport) -> None:
        """Where links are even, what leaves the home is what a copy's price of 1 counts."""
        cluster = clusters()["even"]
        ids_TK = np.array([[0, 1, 5, 9], [3, 7, 12, 15], [8, -1, -1, -1], [-1] * TOP_K], dtype=np.int16)
        for tokens in (2, 4):
            layer = _cost(cluster, ids_TK[:tokens], np.zeros(tokens, dtype=np.int32))
            between_L = transport.between_nodes_L(layer.traffic.leaving_3()[None] / tokens, cluster.num_nodes)
            assert between_L[0] == pytest.approx(transport.cost(layer.traffic, transport.fare_HX(cluster), tokens))

    def test_is_named_with_the_engines_that_send_so(self, transport: Transport) -> None:
        """Advice tells both."""
        assert transport.name and transport.engines


def clusters() -> dict[str, Cluster]:
    """Four nodes of two GPUs, by the name of their topology."""
    return {
        name: Cluster(num_nodes=4, gpus_per_node=2, slots_per_gpu=2, topology=topology)
        for name, topology in TOPOLOGIES.items()
    }


def _cost(cluster: Cluster, ids_TK: npt.NDArray[Any], home_T: npt.NDArray[np.int32]) -> LayerCost:
    """Of tokens under a map with one slot for every expert, in order of their ids."""
    layer = LayerCost.start(np.arange(EXPERTS), EXPERTS, cluster, TRANSPORT)
    tokens = LayerTokens(ids_TK, np.ones(len(ids_TK), dtype=np.int64), home_T, bool((home_T < 0).all()))
    cost_layer(tokens, REPLICA_CHOICES.make(REPLICA_CHOICE), layer)
    return layer


def _ranks(cluster: Cluster, ids_TK: npt.NDArray[Any]) -> list[list[int]]:
    """The ranks that serve each token."""
    return [[e // cluster.slots_per_gpu for e in row if e >= 0] for row in ids_TK.tolist()]


def _homes(cluster: Cluster, home_T: npt.NDArray[np.int32]) -> list[list[int]]:
    """The homes that each token may have."""
    return [list(range(cluster.num_nodes)) if home < 0 else [home] for home in home_T.tolist()]
