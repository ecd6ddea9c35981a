"""Integer programs of papers: MoETuner's two steps (2502.06643), and expected hops (2508.09229).

Written after what the papers describe: neither published code. Solved by CP-SAT within its deterministic time.
"""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
from base import LOAD_SLACK, Floats, Ints, Peer, Vertices, by_nodes
from ortools.sat.python import cp_model
from scipy.optimize import linear_sum_assignment

from placement.solvers.moves import capped_copies, separate_copies
from placement.solvers.problem import LayerProblem

LIMIT_S = 0.2
PAIRS_PER_COPY = 6  # only the heaviest pairs get variables: all of them are too many
UNIT = 100_000  # a layer's load in integers


def moetuner(problem: LayerProblem, affinity: bool) -> Ints:
    """First clusters of a GPU's size with the least sum of |load - mean|, then clusters to nodes by affinity.

    affinity: the first step also counts what is used together, at the price of an equal share of load. The paper's
    second step uses transitions between layers; nothing that we measure depends on those, so it is co-activation here.
    """
    cluster = problem.cluster
    expert_P, copies_E = capped_copies(problem.load_E, cluster)
    load_P = (problem.load_E / copies_E)[expert_P]
    weight_PP = problem.coact_EE[np.ix_(expert_P, expert_P)] / np.outer(copies_E[expert_P], copies_E[expert_P])
    np.copyto(weight_PP, 0.0, where=expert_P[:, None] == expert_P)
    weight_PP = weight_PP / weight_PP.sum()
    load = np.rint(UNIT * load_P / load_P.sum()).astype(np.int64)
    model, x_PG, same = _clusters(
        weight_PP if affinity else 0 * weight_PP, np.full(cluster.num_ranks, cluster.slots_per_gpu)
    )
    for expert, rank in product(np.flatnonzero(copies_E > 1).tolist(), range(cluster.num_ranks)):
        model.add_at_most_one(x_PG[p][rank] for p in np.flatnonzero(expert_P == expert).tolist())
    off_G = [model.new_int_var(0, UNIT, "") for _ in range(cluster.num_ranks)]
    mean = round(load.sum() / cluster.num_ranks)
    for rank, off in enumerate(off_G):
        total = sum(int(load[p]) * x_PG[p][rank] for p in range(len(load)))
        model.add(off >= total - mean)
        model.add(off >= mean - total)
    model.minimize(sum(off_G) - same)
    rank_P = _solved(model, x_PG, _snake(load, cluster.num_ranks))

    tie_GG = np.eye(cluster.num_ranks)[rank_P].T @ weight_PP @ np.eye(cluster.num_ranks)[rank_P]
    np.fill_diagonal(tie_GG, 0.0)
    model, x_GN, same = _clusters(tie_GG, np.full(cluster.num_nodes, cluster.gpus_per_node))
    model.maximize(same)
    node_G = _solved(model, x_GN, np.arange(cluster.num_ranks) // cluster.gpus_per_node)
    rows = [expert_P[rank_P == rank] for rank in np.argsort(node_G, kind="stable")]
    return separate_copies(np.concatenate(rows), cluster, problem.load_E)


def pairs_on_nodes(vertices: Vertices) -> Ints:
    """The same first step with nodes as clusters and the load as a constraint: within 5% where that can be."""
    nodes = len(vertices.room_N)
    model, x_VN, same = _clusters(vertices.weight_VV / vertices.weight_VV.sum(), vertices.room_N)
    load = np.rint(UNIT * vertices.load_V / vertices.load_V.sum()).astype(np.int64)
    most = model.new_int_var(0, UNIT, "")
    for node in range(nodes):
        model.add(sum(int(load[v]) * x_VN[v][node] for v in range(len(load))) <= most)
    over = model.new_int_var(0, UNIT, "")
    model.add(over >= most - round((1 + LOAD_SLACK) * load.sum() / nodes))
    model.maximize(same - 100 * over)
    return _solved(model, x_VN, _snake(load, nodes))


def hops(problem: LayerProblem, load_aware: bool) -> Ints:
    """Least sum of load times expected hops from a random node, nodes in a chain (in a tree all maps are equal).

    An assignment problem; load_aware: with the load of the fullest GPU in the objective, at the weight of the hops.
    """
    cluster = problem.cluster
    expert_P, copies_E = capped_copies(problem.load_E, cluster)
    load_P = (problem.load_E / copies_E)[expert_P]
    node_G = np.arange(cluster.num_ranks) // cluster.gpus_per_node
    hops_G = np.abs(node_G[:, None] - np.arange(cluster.num_nodes)).mean(axis=1)
    hops_P = np.repeat(hops_G, cluster.slots_per_gpu)
    copy, slot = linear_sum_assignment(np.outer(load_P, hops_P))
    rank_P = slot[np.argsort(copy)] // cluster.slots_per_gpu
    if load_aware:
        load = np.rint(UNIT * load_P / load_P.sum()).astype(np.int64)
        model, x_PG, _ = _clusters(np.zeros((len(load), len(load))), np.full(cluster.num_ranks, cluster.slots_per_gpu))
        most = model.new_int_var(0, UNIT, "")
        for rank in range(cluster.num_ranks):
            model.add(sum(int(load[p]) * x_PG[p][rank] for p in range(len(load))) <= most)
        far = np.rint(10 * hops_G / hops_G.mean()).astype(np.int64)
        cost = sum(int(load[p] * far[g]) * x_PG[p][g] for p, g in product(range(len(load)), range(cluster.num_ranks)))
        model.minimize(cost + 10 * cluster.num_ranks * most)
        rank_P = _solved(model, x_PG, _snake(load, cluster.num_ranks))
    row = expert_P[np.argsort(rank_P, kind="stable")]
    return separate_copies(row, cluster, problem.load_E)


def _clusters(weight_XX: Floats, room_C: Ints) -> tuple[cp_model.CpModel, list, cp_model.LinearExpr]:
    """x[item][cluster] with exact sizes, and the weight of the heaviest pairs that share a cluster, of UNIT in all."""
    model, items, clusters = cp_model.CpModel(), range(len(weight_XX)), range(len(room_C))
    x = [[model.new_bool_var("") for _ in clusters] for _ in items]
    for item in items:
        model.add_exactly_one(x[item])
    for cluster in clusters:
        model.add(sum(x[item][cluster] for item in items) == int(room_C[cluster]))
    first, second = np.nonzero(np.triu(weight_XX, 1))
    heavy = np.argsort(-weight_XX[first, second], kind="stable")[: PAIRS_PER_COPY * len(weight_XX)]
    terms = []
    for a, b in zip(first[heavy].tolist(), second[heavy].tolist(), strict=True):
        together = model.new_bool_var("")
        for cluster in clusters:
            model.add_bool_or([together.negated(), x[a][cluster].negated(), x[b][cluster]])
        terms.append(round(2 * UNIT * float(weight_XX[a, b])) * together)
    return model, x, cp_model.LinearExpr.sum(terms) if terms else 0


def _snake(load_X: Ints, clusters: int) -> Ints:
    """Cluster of every item: the heaviest first, dealt to and fro (0 1 2 2 1 0 0 1 ...)."""
    turn, place = np.divmod(np.arange(len(load_X)), clusters)
    cluster_X = np.empty(len(load_X), dtype=np.int64)
    cluster_X[np.argsort(-load_X, kind="stable")] = np.where(turn % 2, clusters - 1 - place, place)
    return cluster_X


def _solved(model: cp_model.CpModel, x: list, start: Ints) -> Ints:
    """Cluster of every item; `start` is a hint, and the answer where the solver finds none in time."""
    for item, cluster in enumerate(start.tolist()):
        for c, literal in enumerate(x[item]):
            model.add_hint(literal, c == cluster)
    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.max_deterministic_time = LIMIT_S
    solver.parameters.max_time_in_seconds = 3.0  # where that is slow
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return start
    return np.array([next(c for c, literal in enumerate(row) if solver.boolean_value(literal)) for row in x])


PEERS = [
    Peer(name="MoETuner ILP", place=partial(moetuner, affinity=False)),
    Peer(name="MoETuner ILP + affinity", place=partial(moetuner, affinity=True)),
    Peer(name="ILP on pairs, load", place=by_nodes(pairs_on_nodes)),
    Peer(name="hops", place=partial(hops, load_aware=False)),
    Peer(name="hops, load", place=partial(hops, load_aware=True)),
]
