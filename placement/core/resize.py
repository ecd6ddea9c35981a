"""Clusters of different size: which rank is which, what each rank holds, and the map that needs the fewest copies.

A rank that stays keeps its weights, a new rank is empty, and what a lost rank held is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.core.relabel import holds_GE, relabel
from placement.core.shape import Shape
from placement.errors import ClusterError

NEW = -1

Row = npt.NDArray[np.int32]
Ints = npt.NDArray[np.int64]
Holds = npt.NDArray[np.bool_]


def old_ranks_G(old: Shape, new: Shape, lost_ranks: Sequence[int] = ()) -> Ints:
    """The number that each rank of the new cluster has in the old one, int64 [G]; NEW: the rank is empty.

    - In a cluster that is no smaller every rank keeps its place, and an empty rank takes the place of a lost one.
    - In a smaller one the ranks that stay close up in order.
    - The place of a rank is the number that the engine gives it; where the nodes stay as many, its node and its number
      among the ranks of that node.

    Args:
        old: The cluster of the map in use.
        new: The cluster to come.
        lost_ranks: Ranks of the old cluster, as its engine numbers them, whose weights are gone; without any, a smaller
            cluster loses the last ones (of every node, where the nodes stay as many).

    Raises:
        ClusterError: A lost rank is none of the old cluster, or more ranks stay than the new one has.
    """
    wrong = [rank for rank in lost_ranks if not 0 <= rank < old.num_ranks]
    if wrong:
        raise ClusterError(
            f"lost rank {wrong[0]} is out of range: the map in use has the ranks 0 to {old.num_ranks - 1}"
        )
    parts = old.num_nodes if old.num_nodes == new.num_nodes else 1
    at_G, new_at_G = (np.arange(of.num_ranks) if parts > 1 else np.argsort(of.engine_rank_G()) for of in (old, new))
    old_NG = at_G.reshape(parts, -1)
    size = new.num_ranks // parts
    stays_NG = np.broadcast_to(np.arange(old_NG.shape[1]) < size, old_NG.shape)
    if lost_ranks:
        stays_NG = ~np.isin(old.engine_rank_G()[old_NG], lost_ranks)
    found_NG = np.full((parts, size), NEW, dtype=np.int64)
    for part, (ranks, stays) in enumerate(zip(old_NG, stays_NG, strict=True)):
        kept = np.where(stays, ranks, NEW) if len(ranks) <= size else ranks[stays]
        if len(kept) > size:
            where = f"of node {part} " if parts > 1 else ""
            raise ClusterError(
                f"{len(kept)} ranks {where}stay, but the new cluster has {size}; name {len(kept) - size} more with "
                "--lost-ranks"
            )
        found_NG[part, : len(kept)] = kept
    found_G = np.empty(new.num_ranks, dtype=np.int64)
    found_G[new_at_G] = found_NG.ravel()
    return found_G


def by_engine_G(old: Shape, new: Shape, old_rank_G: Ints) -> Ints:
    """What `old_ranks_G` gives, with the numbers that the engine gives to ranks, old and new, int64 [G]."""
    told_G = np.where(old_rank_G == NEW, NEW, old.engine_rank_G()[old_rank_G])
    return np.asarray(told_G[np.argsort(new.engine_rank_G())])


@dataclass(frozen=True, slots=True, kw_only=True)
class Resize:
    """A map in use as the cluster to come finds it.

    Attributes:
        current: The map in use.
        cluster: The cluster to come.
        old_rank_G: The number that each of its ranks has in the map in use, int64 [G]; NEW: the rank is empty.
    """

    current: Placement
    cluster: Cluster
    old_rank_G: Ints

    @staticmethod
    def of(current: Placement, cluster: Cluster, lost_ranks: Sequence[int] = ()) -> Resize:
        """With ranks as `old_ranks_G` says, which raises ClusterError."""
        return Resize(current=current, cluster=cluster, old_rank_G=old_ranks_G(current, cluster, lost_ranks))

    @property
    def resized(self) -> bool:
        """False where the clusters are alike and no rank is lost."""
        return self.current.shape != self.cluster.shape or NEW in self.old_rank_G

    def held_GE(self, layer: int) -> Holds:
        """Which rank of the cluster to come holds which expert before the change, bool [G, E]."""
        holds = holds_GE(self.current.phy2log_LP[layer], self.current, self.current.model.num_experts)
        return np.asarray(holds[np.maximum(self.old_rank_G, 0)] & (self.old_rank_G != NEW)[:, None])

    def held_LGE(self) -> Holds:
        """The same of all layers, bool [L, G, E]."""
        return np.stack([self.held_GE(layer) for layer in range(self.current.model.num_layers)])

    def now_P(self, layer: int) -> Row:
        """What every slot to come holds before the change, int32 [P]: slot s of a rank is its slot s before.

        -1: nothing, for the rank is empty or had fewer slots.
        """
        old, new = self.current, self.cluster
        common = min(old.slots_per_gpu, new.slots_per_gpu)
        found_GS = np.full((new.num_ranks, new.slots_per_gpu), -1, dtype=np.int32)
        old_GS = old.phy2log_LP[layer].reshape(old.num_ranks, -1)
        found_GS[:, :common] = old_GS[np.maximum(self.old_rank_G, 0), :common]
        found_GS[self.old_rank_G == NEW] = -1
        return found_GS.ravel()

    def fewest_copies_L(self) -> Ints:
        """How many slots of every layer have to be filled at least, whatever the map to come, int64 [L].

        A wasted slot, whose expert an earlier slot of its rank holds, counts as empty.
        """
        slots, found = self.cluster.slots_per_gpu, []
        for held in self.held_LGE():
            kept = int(np.minimum(held.sum(axis=1), slots).sum())
            without = self.current.model.num_experts - int(_one_rank_each(held, slots).sum())
            found.append(max(self.cluster.num_slots - kept, without))
        return np.array(found, dtype=np.int64)

    def start(self, load_LE: npt.NDArray[np.number]) -> Placement:
        """A map for the cluster to come with the fewest copies, see `fewest_copies_P`.

        Args:
            load_LE: Load of every expert, [L, E].
        """
        rows = [
            fewest_copies_P(self.held_GE(layer), self.now_P(layer), self.cluster, np.asarray(load_E, dtype=np.float64))
            for layer, load_E in enumerate(load_LE)
        ]
        return Placement(model=self.current.model, **self.cluster.sizes(), phy2log_LP=np.stack(rows))

    def relabelled(self, new: Placement) -> Placement:
        """The map to come with nodes, GPUs and slots that are alike named so that the fewest copies lead there."""
        rows = [
            relabel(self.now_P(layer), new_P, self.cluster, held_GE=self.held_GE(layer))
            for layer, new_P in enumerate(new.phy2log_LP)
        ]
        return replace(new, phy2log_LP=np.stack(rows))


def fewest_copies_P(held: Holds, now_P: Row, cluster: Cluster, load_E: npt.NDArray[np.float64]) -> Row:
    """A map of one layer in which the fewest slots hold an expert that their rank does not hold before, int32 [P].

    Each rank keeps what it holds as far as it has slots. Copies fill the slots that are left, and stand in for
    experts that no rank can keep: as many as the larger of both numbers.

    Args:
        held: What every rank holds before, bool [G, E].
        now_P: The expert that every slot holds before, or -1; those that stay keep their slots.
        cluster: The new cluster; it has room for all experts.
        load_E: Load of every expert: of equally few copies the heaviest experts get the slots to spare.
    """
    slots, num_ranks = cluster.slots_per_gpu, cluster.num_ranks
    keeps = _one_rank_each(held, slots)
    missing = int((~keeps.any(axis=0)).sum())
    spare = int(np.minimum(held.sum(axis=1), slots).sum() - keeps.sum())  # kept beside one slot of each expert
    spare = min(spare, cluster.num_slots - int(keeps.sum()) - missing)
    copies_E = keeps.sum(axis=0)

    def per_copy(experts: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.asarray((load_E / np.maximum(copies_E, 1))[experts])

    def add(rank: int, expert: int) -> None:
        keeps[rank, expert] = True
        copies_E[expert] += 1

    for _ in range(spare):
        ranks, experts = np.nonzero(held & ~keeps & (keeps.sum(axis=1) < slots)[:, None])
        best = int(per_copy(experts).argmax())
        add(int(ranks[best]), int(experts[best]))
    lacking = np.flatnonzero(copies_E == 0)
    for expert in lacking[np.argsort(-load_E[lacking], kind="stable")].tolist():
        add(_lightest(keeps, slots, load_E, copies_E), expert)
    while int(keeps.sum()) < cluster.num_slots:
        rank = _lightest(keeps, slots, load_E, copies_E)
        absent = np.flatnonzero(~keeps[rank])
        add(rank, int(absent[per_copy(absent).argmax()]))
    row_GS = np.full((num_ranks, slots), -1, dtype=np.int32)
    for rank, now_S in enumerate(np.asarray(now_P).reshape(num_ranks, slots).tolist()):
        left = set(np.flatnonzero(keeps[rank]).tolist())
        for slot, expert in enumerate(now_S):
            if expert in left:
                row_GS[rank, slot] = expert
                left.discard(expert)
        row_GS[rank, row_GS[rank] < 0] = sorted(left)
    return row_GS.ravel()


def _one_rank_each(held: Holds, slots: int) -> Holds:
    """As many experts as can be kept at all, each on one of the ranks that hold it, bool [G, E]."""
    from scipy.sparse import csr_array  # a quarter of a second, and only clusters of another size need it
    from scipy.sparse.csgraph import maximum_bipartite_matching

    num_ranks, num_experts = held.shape
    slot_E = maximum_bipartite_matching(csr_array(np.repeat(held.T, slots, axis=1).astype(np.int8)), perm_type="column")
    keeps = np.zeros((num_ranks, num_experts), dtype=bool)
    kept = np.flatnonzero(slot_E >= 0)
    keeps[slot_E[kept] // slots, kept] = True
    return keeps


def _lightest(keeps: Holds, slots: int, load_E: npt.NDArray[np.float64], copies_E: Ints) -> int:
    """The rank with the least load of those with a free slot."""
    load_G = keeps @ (load_E / np.maximum(copies_E, 1))
    return int(np.where(keeps.sum(axis=1) < slots, load_G, np.inf).argmin())
