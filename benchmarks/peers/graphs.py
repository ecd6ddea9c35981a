"""Co-activation clusterings of papers: greedy, spectral, Kernighan-Lin, Louvain."""

from __future__ import annotations

import networkx as nx
import numpy as np
from base import Ints, Peer, Vertices, by_nodes
from scipy.optimize import linear_sum_assignment

ROUNDS = 30


def greedy(vertices: Vertices) -> Ints:
    """Node by node: the hottest copy that is left, then always the one most used together with what is there."""
    node_V = np.full(len(vertices.load_V), -1)
    for node, room in enumerate(vertices.room_N):
        for step in range(room):
            wish_V = vertices.load_V if step == 0 else vertices.weight_VV[:, node_V == node].sum(axis=1)
            node_V[int(np.argmax(np.where(node_V < 0, wish_V, -1.0)))] = node
    return node_V


def spectral(vertices: Vertices) -> Ints:
    """Eigenvectors of the normalised co-activation, then k-means with exact sizes (an assignment each round)."""
    nodes = len(vertices.room_N)
    scale_V = 1 / np.sqrt(np.maximum(vertices.weight_VV.sum(axis=1), 1e-12))
    _, vectors = np.linalg.eigh(scale_V[:, None] * vertices.weight_VV * scale_V)
    point_VD = vectors[:, -nodes:]
    point_VD = point_VD / np.maximum(np.linalg.norm(point_VD, axis=1, keepdims=True), 1e-12)
    seat_node = np.repeat(np.arange(nodes), vertices.room_N)
    rng = np.random.default_rng(vertices.seed)
    best, best_cost = None, np.inf
    for _ in range(5):
        centre_ND = point_VD[rng.choice(len(point_VD), nodes, replace=False)]
        node_V = np.full(len(point_VD), -1)
        for _ in range(ROUNDS):
            far_VN = ((point_VD[:, None] - centre_ND) ** 2).sum(axis=2)
            copy, seat = linear_sum_assignment(far_VN[:, seat_node])
            before, node_V = node_V, seat_node[seat][np.argsort(copy)]
            if (before == node_V).all():
                break
            centre_ND = np.stack([point_VD[node_V == node].mean(axis=0) for node in range(nodes)])
        cost = float(far_VN[np.arange(len(node_V)), node_V].sum())
        if cost < best_cost:
            best, best_cost = node_V, cost
    return best


def kernighan_lin(vertices: Vertices) -> Ints:
    """Recursive bisection of networkx."""
    node_V = np.zeros(len(vertices.load_V), dtype=np.int64)

    def bisect(members: list[int], first: int, parts: int) -> None:
        if parts == 1:
            node_V[members] = first
            return
        half = parts // 2
        cut = int(vertices.room_N[first : first + half].sum())
        start = (set(members[:cut]), set(members[cut:]))
        sides = nx.community.kernighan_lin_bisection(graph.subgraph(members), start, max_iter=20, seed=vertices.seed)
        left, right = (sorted(side) for side in sides)
        if len(left) != cut:
            left, right = right, left
        bisect(left, first, half)
        bisect(right, first + half, parts - half)

    graph = _graph(vertices)
    shuffled = np.random.default_rng(vertices.seed).permutation(len(node_V)).tolist()
    bisect(shuffled, 0, len(vertices.room_N))
    return node_V


def louvain(vertices: Vertices) -> Ints:
    """Communities of networkx, at least one a node; the largest first to the node with the most room."""
    graph = _graph(vertices)
    for resolution in (1.0, 1.05, 1.1, 1.2, 1.5):
        found = nx.community.louvain_communities(graph, weight="weight", resolution=resolution, seed=vertices.seed)
        if len(found) >= len(vertices.room_N):
            break
    room_N = vertices.room_N.copy()
    node_V = np.zeros(len(vertices.load_V), dtype=np.int64)
    for community in sorted((sorted(one) for one in found), key=lambda one: (-len(one), one)):
        node = int(np.argmax(room_N))
        node_V[community] = node
        room_N[node] -= len(community)
    return node_V


def _graph(vertices: Vertices) -> nx.Graph:
    graph = nx.Graph()
    graph.add_nodes_from(range(len(vertices.load_V)))
    first, second = np.nonzero(np.triu(vertices.weight_VV, 1))
    weights = vertices.weight_VV[first, second].tolist()
    graph.add_weighted_edges_from(zip(first.tolist(), second.tolist(), weights, strict=True))
    return graph


SPLITS = {"greedy": greedy, "spectral": spectral, "Kernighan-Lin": kernighan_lin, "Louvain": louvain}
PEERS = [Peer(name=name, place=by_nodes(split)) for name, split in SPLITS.items()]
PEERS += [Peer(name=f"{name}, load", place=by_nodes(split, by_load=True)) for name, split in SPLITS.items()]
