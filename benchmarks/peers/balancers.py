"""What engines do: they see no co-activation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from base import Ints, Peer

from placement.solvers import get_solver
from placement.solvers.eplb import balanced_packing, eplb_map
from placement.solvers.moves import separate_copies
from placement.solvers.problem import LayerProblem


def eplb(groups: Callable[[LayerProblem], int]) -> Callable[[LayerProblem], Ints]:
    def place(problem: LayerProblem) -> Ints:
        row = eplb_map(
            problem.load_E,
            num_slots=problem.cluster.num_slots,
            num_groups=groups(problem),
            num_nodes=problem.cluster.num_nodes,
            num_ranks=problem.cluster.num_ranks,
        )
        return separate_copies(row, problem.cluster, problem.load_E)

    return place


def hottest_everywhere(problem: LayerProblem) -> Ints:
    """ATOM's "biased" replication: the hottest experts on every rank, the others dealt by load (as EPLB packs)."""
    cluster, load_E = problem.cluster, problem.load_E
    ranks = cluster.num_ranks
    num_hot = problem.num_redundant // max(ranks - 1, 1)
    hot = np.argsort(-load_E, kind="stable")[:num_hot]
    cool = np.setdiff1d(np.arange(problem.num_experts), hot)
    spare = ranks * (cluster.slots_per_gpu - num_hot) - len(cool)
    count = np.ones(len(cool), dtype=np.int64)
    copies = list(range(len(cool)))
    for _ in range(spare):
        hottest = int(np.argmax(np.where(count < ranks, load_E[cool] / count, -1.0)))
        count[hottest] += 1
        copies.append(hottest)
    rank_X, place_X = balanced_packing((load_E[cool] / count)[copies], ranks)
    row = np.empty((ranks, cluster.slots_per_gpu), dtype=np.int64)
    row[:, :num_hot] = hot
    row[rank_X, num_hot + place_X] = cool[copies]
    return separate_copies(row.ravel(), cluster, load_E)


PEERS = [
    Peer(name="linear", place=lambda problem: get_solver("linear").solve_layer(problem).phy2log_P),
    Peer(name="round-robin", place=lambda problem: get_solver("round-robin").solve_layer(problem).phy2log_P),
    Peer(name="EPLB global", place=eplb(lambda problem: 1)),
    Peer(name="EPLB hierarchical", place=eplb(lambda problem: problem.num_groups or 2 * problem.cluster.num_nodes)),
    Peer(name="hottest everywhere", place=hottest_everywhere, needs_redundant=True),
]
