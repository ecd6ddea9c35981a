"""From one map to another: which slot's weights come from which rank, and what that moves over which link."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.core.placement import Placement, check_same_slots
from placement.core.resize import NEW, Resize, by_engine_G
from placement.core.shape import Shape
from placement.errors import MapError

SCHEMA = "expert-migration/1"
COLUMNS = ("layer_id", "slot", "expert", "from_rank", "to_rank")

CHECKPOINT = -1  # a source: no rank that stays holds the expert

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class MigrationPlan:
    """The copies that turn one map into another; all sources are read before their slots are overwritten.

    Attributes:
        cluster: Shape, links and bytes of the cluster.
        layer_ids: Absolute index of each MoE layer.
        layer_M: Position of the layer of each copy, int64 [M].
        slot_M: Slot that is filled, int64 [M].
        expert_M: Expert that the slot then holds, int64 [M].
        source_M: Rank whose weights are read, int64 [M]; CHECKPOINT: none has them any more.
        target_M: Rank of the slot, int64 [M]. Where both ranks are the same, a rank reorders its slots, which is no
            move.
        from_map: `map_digest` of the current map.
        to_map: `map_digest` of the new map.
        old_rank_G: The number that each rank has in the current map, `resize.NEW` for an empty one, int64 [G]; both
            are numbered as the engine numbers them. None: the clusters are alike and no rank is lost.
    """

    cluster: Cluster
    layer_ids: tuple[int, ...]
    layer_M: Ints
    slot_M: Ints
    expert_M: Ints
    source_M: Ints
    target_M: Ints
    from_map: str
    to_map: str
    old_rank_G: Ints | None = None

    @property
    def num_moves(self) -> int:
        """Copies that come from another rank or from the checkpoint."""
        return int(self.moves_M.sum())

    @property
    def moves_M(self) -> npt.NDArray[np.bool_]:
        """Copies that come from another rank or from the checkpoint, bool [M]."""
        return np.asarray(self.source_M != self.target_M)

    @property
    def sent_M(self) -> npt.NDArray[np.bool_]:
        """Copies that come from another rank, bool [M]."""
        return np.asarray(self.moves_M & (self.source_M != CHECKPOINT))

    @property
    def num_loaded(self) -> int:
        """Copies that come from the checkpoint."""
        return int((self.source_M == CHECKPOINT).sum())

    @property
    def bytes_loaded(self) -> int:
        """Bytes that come from the checkpoint."""
        return self.num_loaded * self.cluster.expert_bytes

    @cached_property
    def bytes_GG(self) -> Ints:
        """Bytes from rank (row) to rank, int64 [G, G]."""
        copies_GG = np.zeros((self.cluster.num_ranks, self.cluster.num_ranks), dtype=np.int64)
        np.add.at(copies_GG, (self.source_M[self.sent_M], self.target_M[self.sent_M]), 1)
        return copies_GG * self.cluster.expert_bytes

    @cached_property
    def bytes_NN(self) -> Ints:
        """Bytes from node (row) to node, int64 [N, N]; the diagonal is what stays within nodes."""
        nodes, gpus = self.cluster.num_nodes, self.cluster.gpus_per_node
        return np.asarray(self.bytes_GG.reshape(nodes, gpus, nodes, gpus).sum(axis=(1, 3)))

    @property
    def bytes_within_nodes(self) -> int:
        """Bytes that stay within nodes."""
        return int(np.trace(self.bytes_NN))

    @property
    def bytes_between_nodes(self) -> int:
        """Bytes that go from one node to another."""
        return int(self.bytes_NN.sum()) - self.bytes_within_nodes

    def time_ms(self) -> float:
        """Milliseconds until the busiest rank has sent and received everything; no latency, no other traffic, and
        nothing of what comes from the checkpoint.

        Each way, the network and the links within nodes run side by side, at `inter_gbps` (slower by the topology's
        cost of a link) and `intra_gbps`.
        """
        cluster = self.cluster
        node_G = cluster.node_of_rank_G()
        bits_GG = self.bytes_GG * 8.0
        within_GG = np.where(node_G[:, None] == node_G, bits_GG, 0.0)
        between_GG = bits_GG * cluster.node_cost_NN()[node_G[:, None], node_G]
        times = (
            bits.sum(axis=axis).max() / gbps
            for bits, gbps in ((within_GG, cluster.intra_gbps), (between_GG, cluster.inter_gbps))
            for axis in (0, 1)
        )
        return float(max(times) / 1e6)

    def summary(self) -> dict[str, Any]:
        """Totals, with the same keys everywhere; between clusters of different size with a few more."""
        return {
            "from_map": self.from_map,
            "to_map": self.to_map,
            "moves": self.num_moves,
            "moves_by_layer": np.bincount(self.layer_M[self.moves_M], minlength=len(self.layer_ids)).tolist(),
            "reordered": len(self.slot_M) - self.num_moves,
            "bytes_within_nodes": self.bytes_within_nodes,
            "bytes_between_nodes": self.bytes_between_nodes,
            "most_bytes_from_rank": int(self.bytes_GG.sum(axis=1).max()),
            "most_bytes_to_rank": int(self.bytes_GG.sum(axis=0).max()),
            "time_ms": round(self.time_ms(), 3),
            **self._resized(),
        }

    def _resized(self) -> dict[str, Any]:
        if self.old_rank_G is None:
            return {}
        return {
            "old_ranks": [None if rank == NEW else rank for rank in self.old_rank_G.tolist()],
            "from_checkpoint": self.num_loaded,
            "bytes_from_checkpoint": self.bytes_loaded,
        }

    def document(self) -> dict[str, Any]:
        """Plain data of schema `expert-migration/1`: the summary, bytes from node to node, and the copies as rows."""
        return {
            "schema": SCHEMA,
            **self.summary(),
            "expert_bytes": self.cluster.expert_bytes,
            "bytes_node_to_node": self.bytes_NN.tolist(),
            "columns": list(COLUMNS),
            "copies": [
                [*copy, None if source == CHECKPOINT else source, target]
                for *copy, source, target in self.copies_M5().tolist()
            ],
        }

    def copies_M5(self) -> Ints:
        """The copies as rows of COLUMNS, int64 [M, 5]; slots and ranks are numbered as the engine numbers them.

        The rank that weights come from is CHECKPOINT where none has them.
        """
        rank_G, slot_P = self.cluster.engine_rank_G(), self.cluster.engine_slot_P()
        source_M = np.where(self.source_M == CHECKPOINT, CHECKPOINT, rank_G[self.source_M])
        where = (slot_P[self.slot_M], self.expert_M, source_M, rank_G[self.target_M])
        return np.stack([np.asarray(self.layer_ids)[self.layer_M], *where], axis=1)


def migration_plan(
    current: Placement, new: Placement, cluster: Cluster, *, lost_ranks: Sequence[int] = ()
) -> MigrationPlan:
    """The copies that lead from one map to another; each is the weights of one expert.

    An expert comes over the cheapest link: from another slot of its GPU, else from the same node, else from the nearest
    node; of several such GPUs from the one that has sent least so far. Where no rank that stays holds an expert, its
    weights come from the checkpoint, and from there only.

    Args:
        current: The map in use.
        new: The map that replaces it.
        cluster: Links and bytes; of the shape of the new map.
        lost_ranks: Ranks of the current map, as the engine numbers them, whose weights are gone, see
            `resize.old_ranks_G`.

    Raises:
        MapError: A map is for another model, or the new map for another shape of cluster.
        ClusterError: The lost ranks are none of the current map's, or too few for the new one.
    """
    check_change(current, new.model, cluster)
    check_fits(new, new.model, cluster, called="new")
    change = Resize.of(current, cluster, lost_ranks)
    node_G = cluster.node_of_rank_G()
    # links within nodes cost less than any between them, and those within a rank nothing
    cost_GG = np.where(node_G[:, None] == node_G, 1.0, 2.0 + cluster.node_cost_NN()[node_G[:, None], node_G])
    np.fill_diagonal(cost_GG, 0.0)
    copies = []  # (number of sources, layer, slot): those without a choice are settled first
    for layer, new_P in enumerate(new.phy2log_LP):
        held_GE = change.held_GE(layer)
        for slot in np.flatnonzero(change.now_P(layer) != new_P).tolist():
            holders = np.flatnonzero(held_GE[:, new_P[slot]])
            cost = cost_GG[holders, slot // cluster.slots_per_gpu]
            copies.append((layer, slot, holders[cost == cost.min(initial=np.inf)]))
    sent_G = np.zeros(cluster.num_ranks, dtype=np.int64)
    source = {}
    for layer, slot, holders in sorted(copies, key=lambda copy: len(copy[2])):
        source[layer, slot] = int(holders[np.argmin(sent_G[holders])]) if len(holders) else CHECKPOINT
        if len(holders):
            sent_G[source[layer, slot]] += source[layer, slot] != slot // cluster.slots_per_gpu
    layer_M = np.array([layer for layer, _, _ in copies], dtype=np.int64)
    slot_M = np.array([slot for _, slot, _ in copies], dtype=np.int64)
    return MigrationPlan(
        cluster=cluster,
        layer_ids=new.model.layer_ids,
        layer_M=layer_M,
        slot_M=slot_M,
        expert_M=new.phy2log_LP[layer_M, slot_M].astype(np.int64),
        source_M=np.array([source[layer, slot] for layer, slot, _ in copies], dtype=np.int64),
        target_M=slot_M // cluster.slots_per_gpu,
        from_map=map_digest(current),
        to_map=map_digest(new),
        old_rank_G=by_engine_G(current, cluster, change.old_rank_G) if change.resized else None,
    )


def check_change(current: Placement, model: Model, cluster: Cluster) -> None:
    """Raise MapError unless the map in use is for this routing, with as many slots of a GPU in every layer, and where
    the cluster has its nodes and GPUs, for ranks that lie as there."""
    check_same_slots(current, "a change of a map")
    if not current.model.same_routing(model):
        raise MapError(f"the current map is for {current.model.routing_said}; {model.routing_said} are needed")
    if current.shape[:2] == cluster.shape[:2]:
        current.check_hosts(cluster)


def check_fits(placement: Placement, model: Model, cluster: Cluster, *, called: str = "current") -> None:
    """Raise MapError unless the map is for this routing and these nodes, GPUs and slots."""
    check_same_slots(placement, "a change of a map")
    if not placement.model.same_routing(model):
        raise MapError(f"the {called} map is for {placement.model.routing_said}; {model.routing_said} are needed")
    if placement.shape != cluster.shape:
        raise MapError(
            f"the {called} map is for {_words(placement)}; {_words(cluster)} are needed; `placement solve --from` "
            "takes a map to a cluster of another size"
        )
    placement.check_hosts(cluster)


def map_digest(placement: Placement) -> str:
    """Names the map alone, whatever file it came from: "sha256:...", of its slots as little-endian int32."""
    return "sha256:" + hashlib.sha256(placement.engine_LP().astype("<i4").tobytes()).hexdigest()


def _words(of: Shape) -> str:
    return f"{of.num_nodes} nodes x {of.gpus_per_node} GPUs x {of.slots_per_gpu} slots a GPU"
