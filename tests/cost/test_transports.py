"""Every registered transport keeps the contract: its price is that of the copies that its name promises."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from placement.core.cluster import Cluster
from placement.cost.transports import TRANSPORTS
from placement.cost.transports.base import Transport
from placement.testing.transports import TransportContract


class _Registered(TransportContract):
    name = ""

    @pytest.fixture
    def transport(self) -> Transport:
        return TRANSPORTS.make(self.name)


class TestNode(_Registered):
    name = "node"

    def units(self, rank_K: Sequence[int], cluster: Cluster, home: int) -> Sequence[int]:
        return list({rank // cluster.gpus_per_node for rank in rank_K})


class TestRank(_Registered):
    name = "rank"

    def units(self, rank_K: Sequence[int], cluster: Cluster, home: int) -> Sequence[int]:
        return list(set(rank_K))


class TestAssignment(_Registered):
    name = "assignment"

    def units(self, rank_K: Sequence[int], cluster: Cluster, home: int) -> Sequence[int]:
        return rank_K


class TestAllGather(_Registered):
    name = "allgather"

    def units(self, rank_K: Sequence[int], cluster: Cluster, home: int) -> Sequence[int]:
        return range(cluster.num_nodes)


def test_none_is_left_out() -> None:
    """A transport that is registered is tested, and is known by its own name."""
    assert {kind.name for kind in _Registered.__subclasses__()} == set(TRANSPORTS)
    assert [TRANSPORTS.make(name).name for name in TRANSPORTS] == list(TRANSPORTS)
