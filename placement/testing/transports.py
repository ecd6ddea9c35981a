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

import numpy as np
import pytest

from placement.core.choices import TRANSPORT
from placement.core.cluster import Cluster
from placement.core.topology import EVEN, Level, Topology
from placement.cost.choices.base import LayerCost
from placement.cost.kernel_single import cost_single
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
        """The node or rank, as `fare_HX` counts them, of every copy of a token; `rank_K` serve its experts."""
        raise NotImplementedError

    def test_fares_are_costs_of_links(self, transport: Transport) -> None:
        """One row a home, one column a node or rank; nothing is paid within a node of even links."""
        for cluster in clusters().values():
            fare_HX = transport.fare_HX(cluster)
            assert fare_HX.shape[0] == cluster.num_nodes and fare_HX.shape[1] in (cluster.num_nodes, cluster.num_ranks)
            assert np.isfinite(fare_HX).all() and (fare_HX >= 0).all()
        remote_HX = transport.fare_HX(clusters()["even"]).reshape(4, 4, -1)
        assert (remote_HX == (1 - np.eye(4))[:, :, None]).all()

    @pytest.mark.parametrize("home", [-1, 0, 3])
    def test_cost_is_the_price_of_every_copy(self, transport: Transport, home: int) -> None:
        """Token by token and copy by copy, on every topology; a home that is unknown is the mean over all."""
        for name, cluster in clusters().items():
            layer = LayerCost.start(np.arange(EXPERTS), EXPERTS, cluster, TRANSPORT)
            ids_TK = np.argsort(np.random.default_rng(0).random((40, EXPERTS)), axis=1)[:, :TOP_K].astype(np.uint8)
            once_T, home_T = np.ones(len(ids_TK), dtype=np.int64), np.full(len(ids_TK), home, dtype=np.int32)
            cost_single(ids_TK, once_T, home_T, layer.tables, layer.traffic, layer.load_P)
            fare_HX = transport.fare_HX(cluster)
            homes = range(cluster.num_nodes) if home < 0 else [home]
            prices = [
                sum(fare_HX[at, unit] for unit in self.units(row, cluster, at))
                for row in (ids_TK // cluster.slots_per_gpu).tolist()
                for at in homes
            ]
            assert transport.cost(layer.traffic, fare_HX, len(ids_TK)) == pytest.approx(np.mean(prices)), name

    def test_bytes_are_those_of_copies_between_nodes(self, transport: Transport) -> None:
        """Where links are even, what leaves the home is what a copy's price of 1 counts."""
        cluster = clusters()["even"]
        layer = LayerCost.start(np.arange(EXPERTS), EXPERTS, cluster, TRANSPORT)
        ids_TK, once_T = np.array([[0, 1, 5, 9], [3, 7, 12, 15]], dtype=np.uint8), np.ones(2, dtype=np.int64)
        cost_single(ids_TK, once_T, np.zeros(2, dtype=np.int32), layer.tables, layer.traffic, layer.load_P)
        between_L = transport.between_nodes_L(layer.traffic.leaving_3()[None] / 2, cluster.num_nodes)
        assert between_L[0] == pytest.approx(transport.cost(layer.traffic, transport.fare_HX(cluster), 2))

    def test_is_named_with_the_engines_that_send_so(self, transport: Transport) -> None:
        """Advice tells both."""
        assert transport.name and transport.engines


def clusters() -> dict[str, Cluster]:
    """Four nodes of two GPUs, by the name of their topology."""
    return {
        name: Cluster(num_nodes=4, gpus_per_node=2, slots_per_gpu=2, topology=topology)
        for name, topology in TOPOLOGIES.items()
    }
