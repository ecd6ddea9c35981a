"""How many nodes, GPUs and slots there are, and which lies where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import ClusterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """`num_nodes` machines of `gpus_per_node` GPUs (ranks); every rank has `slots_per_gpu` slots in each layer.

    Ranks are numbered node by node; slot `p` of a layer is on rank `p // slots_per_gpu`. An engine may number its ranks
    otherwise: `rank_hosts` then has the node of each of the engine's ranks. In memory everything is in our order of
    ranks; files, and what is shown, have the engine's numbers.

    Attributes:
        num_nodes: Machines.
        gpus_per_node: Ranks of a machine.
        slots_per_gpu: Slots of a rank in every layer.
        rank_hosts: Node of each rank as the engine numbers ranks; empty: node by node.
    """

    num_nodes: int
    gpus_per_node: int
    slots_per_gpu: int
    rank_hosts: tuple[int, ...] = ()

    @property
    def num_ranks(self) -> int:
        return self.num_nodes * self.gpus_per_node

    @property
    def num_slots(self) -> int:
        return self.num_ranks * self.slots_per_gpu

    @property
    def slots_per_node(self) -> int:
        return self.gpus_per_node * self.slots_per_gpu

    @property
    def shape(self) -> tuple[int, int, int]:
        """(nodes, GPUs of a node, slots of a GPU): equal for equal shapes."""
        return self.num_nodes, self.gpus_per_node, self.slots_per_gpu

    def sizes(self) -> dict[str, Any]:
        """By name, to make another object of the same shape; `rank_hosts` only where there are any."""
        sizes = dict(zip(("num_nodes", "gpus_per_node", "slots_per_gpu"), self.shape, strict=True))
        return sizes | ({"rank_hosts": self.rank_hosts} if self.rank_hosts else {})

    def settle_hosts(self) -> None:
        """Check `rank_hosts` when an object is made; a list that goes node by node becomes empty.

        Raises:
            ClusterError: The list does not give `gpus_per_node` ranks to every node.
        """
        if not self.rank_hosts:
            return
        hosts, wanted = sorted(self.rank_hosts), self.node_of_rank_G().tolist()
        if hosts != wanted:
            outside = [host for host in hosts if not 0 <= host < self.num_nodes]
            ranks_N = [self.rank_hosts.count(node) for node in range(self.num_nodes)]
            told = f"names node {outside[0]}" if outside else f"gives the nodes {str(ranks_N)[:80]} ranks in turn"
            raise ClusterError(
                f"rank_hosts {told}; each of the {self.num_nodes} nodes, 0 to {self.num_nodes - 1}, needs as many: "
                f"{self.gpus_per_node}"
            )
        if list(self.rank_hosts) == wanted:
            object.__setattr__(self, "rank_hosts", ())

    def engine_rank_G(self) -> npt.NDArray[np.int64]:
        """The number that the engine gives to each rank, int64 [G]."""
        if not self.rank_hosts:
            return np.arange(self.num_ranks)
        return np.argsort(self.rank_hosts, kind="stable").astype(np.int64)

    def by_engine(self, value_LP: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What every slot has, [..., P], in the engine's order of slots."""
        if not self.rank_hosts:
            return value_LP
        return np.take(value_LP, np.argsort(self.engine_slot_P()), axis=-1)

    def from_engine(self, value_LP: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """What every slot of the engine has, [..., P], in our order of slots."""
        return np.take(value_LP, self.engine_slot_P(), axis=-1) if self.rank_hosts else value_LP

    def engine_slot_P(self) -> npt.NDArray[np.int64]:
        """The number that the engine gives to each slot, int64 [P]."""
        slot_GS = self.engine_rank_G()[:, None] * self.slots_per_gpu + np.arange(self.slots_per_gpu)
        return np.asarray(slot_GS.reshape(-1))

    def slots_of_rank(self, rank: int) -> range:
        return range(rank * self.slots_per_gpu, (rank + 1) * self.slots_per_gpu)

    def rank_of_slot_P(self) -> npt.NDArray[np.int64]:
        return np.arange(self.num_slots) // self.slots_per_gpu

    def node_of_rank_G(self) -> npt.NDArray[np.int64]:
        return np.arange(self.num_ranks) // self.gpus_per_node
