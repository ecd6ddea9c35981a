"""What a peer is, and what peers share: copies of experts, exact node sizes, packing onto GPUs by load."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from placement.solvers.moves import capped_copies, separate_copies
from placement.solvers.problem import LayerProblem

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

LOAD_SLACK = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """One way to place a layer: `place(problem)` is its phy2log_P. `package` is what it needs beyond our own."""

    name: str
    place: Callable[[LayerProblem], npt.NDArray[np.integer]]
    package: str | None = None
    needs_redundant: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Vertices:
    """Copies of experts to be split over nodes, and what is used together.

    expert_V, load_V  the expert of each copy and its share of that expert's load
    weight_VV         co-activation, split evenly among copies; 0 between copies of one expert
    edges, count_U    the same as hyperedges: sampled top-k sets in copies, and their tokens
    room_N            slots to fill on each node
    """

    expert_V: Ints
    load_V: Floats
    weight_VV: Floats
    edges: list[list[int]]
    count_U: Ints
    room_N: Ints
    by_load: bool
    seed: int

    def int_weight_VV(self) -> Ints:
        """Weights as partitioners want them: integers up to 10,000."""
        return np.rint(self.weight_VV * (1e4 / max(float(self.weight_VV.max()), 1e-300))).astype(np.int64)

    def vertex_weight_V(self) -> Ints:
        """1 each, or the loads where these are to be balanced."""
        if not self.by_load:
            return np.ones(len(self.load_V), dtype=np.int64)
        return np.rint(1000 * self.load_V / max(float(self.load_V.mean()), 1e-300)).astype(np.int64) + 1


Split = Callable[[Vertices], npt.NDArray[np.integer]]  # node of every copy; sizes may be off, they are repaired


def by_nodes(split: Split, *, everywhere: bool = False, by_load: bool = False) -> Callable[[LayerProblem], Ints]:
    """Copies, then `split` over nodes with exact sizes, then each node's copies onto its GPUs by load.

    everywhere: the hottest experts get a copy on every node; other redundant slots, or all, follow EPLB's counts
    by_load:    the split weighs vertices by load, and swaps then bring every node within 5% of the mean load
    """

    def place(problem: LayerProblem) -> Ints:
        hot, vertices = vertices_of(problem, everywhere=everywhere, by_load=by_load)
        node_V = repair_sizes(np.asarray(split(vertices), dtype=np.int64), vertices)
        if by_load:
            node_V = even_loads(node_V, vertices)
        share = problem.load_E[hot] / problem.cluster.num_nodes
        parts = [np.flatnonzero(node_V == node) for node in range(problem.cluster.num_nodes)]
        rows = [
            pack(
                np.concatenate([hot, vertices.expert_V[part]]),
                np.concatenate([share, vertices.load_V[part]]),
                problem.cluster.gpus_per_node,
            )
            for part in parts
        ]
        return separate_copies(np.concatenate(rows), problem.cluster, problem.load_E)

    return place


def vertices_of(problem: LayerProblem, *, everywhere: bool, by_load: bool) -> tuple[Ints, Vertices]:
    """The experts that go on every node (none unless `everywhere`), and the copies that are left to be split."""
    cluster = problem.cluster
    nodes, spare = cluster.num_nodes, problem.num_redundant
    num_hot = spare // max(nodes - 1, 1) if everywhere else 0
    hot = np.argsort(-problem.load_E, kind="stable")[:num_hot].astype(np.int64)
    cool = np.setdiff1d(np.arange(problem.num_experts), hot)
    room = replace(cluster, gpus_per_node=1, slots_per_gpu=cluster.slots_per_node - num_hot)
    extra_of, copies_of = capped_copies(problem.load_E[cool], room if everywhere else cluster)
    expert_V = cool[extra_of]
    copies_E = np.ones(problem.num_experts)
    copies_E[cool] = copies_of
    weight_VV = problem.coact_EE[np.ix_(expert_V, expert_V)] / np.outer(copies_E[expert_V], copies_E[expert_V])
    np.copyto(weight_VV, 0.0, where=expert_V[:, None] == expert_V)
    members = [np.flatnonzero(expert_V == e).tolist() for e in range(problem.num_experts)]
    # the sets that use an expert are dealt to its copies in turn
    edges = [[members[e][u % len(members[e])] for e in row if members[e]] for u, row in enumerate(problem.sets_UK)]
    useful = [u for u, edge in enumerate(edges) if len(edge) > 1]
    return hot, Vertices(
        expert_V=expert_V,
        load_V=problem.load_E[expert_V] / copies_E[expert_V],
        weight_VV=weight_VV,
        edges=[edges[u] for u in useful],
        count_U=problem.count_U[useful],
        room_N=np.full(nodes, cluster.slots_per_node - num_hot),
        by_load=by_load,
        seed=problem.seed % 2**31,
    )


def repair_sizes(node_V: Ints, vertices: Vertices) -> Ints:
    """Move copies from full nodes to those with room, each time the one whose co-activation suffers least."""
    node_V = node_V.copy()
    nodes = len(vertices.room_N)
    while True:
        over_N = np.bincount(node_V, minlength=nodes) - vertices.room_N
        if not over_N.any():
            return node_V
        tie_VN = vertices.weight_VV @ np.eye(nodes)[node_V]
        gain_VN = tie_VN - tie_VN[np.arange(len(node_V)), node_V][:, None]
        gain_VN[over_N[node_V] <= 0] = -np.inf
        gain_VN[:, over_N >= 0] = -np.inf
        copy, node = np.unravel_index(int(np.argmax(gain_VN)), gain_VN.shape)
        node_V[copy] = node


def even_loads(node_V: Ints, vertices: Vertices) -> Ints:
    """Swap copies of different nodes until every node is within 5% of the mean load, at the least loss of
    co-activation for each unit of overload mended; or until no swap helps."""
    node_V = node_V.copy()
    nodes, load_V, weight_VV = len(vertices.room_N), vertices.load_V, vertices.weight_VV
    allowed = (1 + LOAD_SLACK) * load_V.sum() / nodes
    while True:
        load_N = np.bincount(node_V, weights=load_V, minlength=nodes)
        heavy = int(np.argmax(load_N))
        if load_N[heavy] <= allowed:
            return node_V
        tie_VN = weight_VV @ np.eye(nodes)[node_V]
        mine, others = np.flatnonzero(node_V == heavy), np.flatnonzero(node_V != heavy)
        moved = load_V[mine][:, None] - load_V[others]
        after = np.maximum(load_N[heavy] - moved, load_N[node_V[others]] + moved)
        mended = load_N[heavy] - np.maximum(after, allowed)
        loss = (
            tie_VN[mine, heavy][:, None]
            - tie_VN[np.ix_(mine, range(nodes))][:, node_V[others]]
            + tie_VN[others, node_V[others]]
            - tie_VN[others, heavy]
            + 2 * weight_VV[np.ix_(mine, others)]
        )
        price = np.where(mended > 1e-12 * allowed, loss / np.maximum(mended, 1e-300), np.inf)
        price = np.where((loss < 0) & (mended > 1e-12 * allowed), loss * mended, price)
        if not np.isfinite(price).any():
            return node_V
        a, b = np.unravel_index(int(np.argmin(price)), price.shape)
        node_V[mine[a]], node_V[others[b]] = node_V[others[b]], heavy


def pack(expert_X: Ints, load_X: Floats, num_gpus: int) -> Ints:
    """Heaviest first onto the least loaded GPU that has room and lacks the expert (if there is one): its slots."""
    size = len(expert_X) // num_gpus
    held: list[list[int]] = [[] for _ in range(num_gpus)]
    total = np.zeros(num_gpus)
    for x in np.argsort(-load_X, kind="stable"):
        expert = int(expert_X[x])
        free = [g for g in range(num_gpus) if len(held[g]) < size]
        gpu = min(free, key=lambda g: (expert in held[g], total[g], g))
        held[gpu].append(expert)
        total[gpu] += load_X[x]
    return np.concatenate([np.array(experts, dtype=np.int64) for experts in held])
