"""Partitioners in their own packages: METIS, KaHIP on the co-activation graph, Mt-KaHyPar on the top-k sets.

None takes two balance constraints here (pymetis passes METIS one weight a vertex, the others know no more than one):
by count they are exact; by load the sizes are repaired and loads evened by swaps afterwards.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Any

import numpy as np
from base import LOAD_SLACK, Ints, Peer, Vertices, by_nodes

SEEDS = 5


def metis(vertices: Vertices) -> Ints:
    """The best of 5 seeds, each with METIS' own best of 5 cuts."""
    import pymetis

    starts, neighbours, weights = _csr(vertices)
    best, best_cut = None, None
    for seed in range(SEEDS):
        slack = int(1000 * LOAD_SLACK) if vertices.by_load else 1
        result = pymetis.part_graph(
            len(vertices.room_N),
            adjacency=pymetis.CSRAdjacency(starts, neighbours),
            eweights=weights,
            vweights=vertices.vertex_weight_V().tolist(),
            recursive=False,
            options=pymetis.Options(seed=seed, ncuts=5, ufactor=slack),
        )
        if best_cut is None or result.edge_cuts < best_cut:
            best, best_cut = result.vertex_part, result.edge_cuts
    return np.array(best)


def kahip(vertices: Vertices, mode: str) -> Ints:
    import kahip

    starts, neighbours, weights = _csr(vertices)
    slack = LOAD_SLACK if vertices.by_load else 0.0
    _, part = kahip.kaffpa(
        vertices.vertex_weight_V().tolist(),
        starts,
        weights,
        neighbours,
        len(vertices.room_N),
        slack,
        True,  # no output
        vertices.seed % 10_000,
        getattr(kahip, mode),
    )
    return np.array(part)


def mt_kahypar(vertices: Vertices, preset: str) -> Ints:
    """Connectivity (km1) of the top-k sets: the sends themselves, without copies."""
    import mtkahypar

    machine = _machine()
    mtkahypar.set_seed(vertices.seed % 10_000)
    context = machine.context_from_preset(getattr(mtkahypar.PresetType, preset))
    slack = LOAD_SLACK if vertices.by_load else 0.0
    context.set_partitioning_parameters(len(vertices.room_N), slack, mtkahypar.Objective.KM1)
    context.logging = False
    hypergraph = machine.create_hypergraph(
        context,
        len(vertices.load_V),
        len(vertices.edges),
        vertices.edges,
        vertices.vertex_weight_V().tolist(),
        vertices.count_U.tolist(),
    )
    return np.array(hypergraph.partition(context).get_partition())


@cache
def _machine() -> Any:
    """It may be initialised once a process; with one thread."""
    import mtkahypar

    return mtkahypar.initialize(1)


def _csr(vertices: Vertices) -> tuple[list[int], list[int], list[int]]:
    """Where each vertex' neighbours start, the neighbours, and the weights; edges of weight 0 are left out."""
    weight_VV = vertices.int_weight_VV()
    first, second = np.nonzero(weight_VV)
    starts = np.concatenate([[0], np.cumsum(np.bincount(first, minlength=len(weight_VV)))])
    return starts.tolist(), second.tolist(), weight_VV[first, second].tolist()


SPLITS = {
    "METIS": (metis, "pymetis"),
    "KaHIP eco": (partial(kahip, mode="ECO"), "kahip"),
    "KaHIP strong": (partial(kahip, mode="STRONG"), "kahip"),
    "Mt-KaHyPar default": (partial(mt_kahypar, preset="DEFAULT"), "mtkahypar"),
    "Mt-KaHyPar quality": (partial(mt_kahypar, preset="QUALITY"), "mtkahypar"),
    "Mt-KaHyPar det. quality": (partial(mt_kahypar, preset="DETERMINISTIC_QUALITY"), "mtkahypar"),
}
BEST = ("METIS", "KaHIP strong", "Mt-KaHyPar quality")
PEERS = [Peer(name=name, place=by_nodes(split), package=package) for name, (split, package) in SPLITS.items()]
for name in BEST:
    split, package = SPLITS[name]
    PEERS.append(Peer(name=f"{name}, load", place=by_nodes(split, by_load=True), package=package))
    for by_load, suffix in ((False, ""), (True, ", load")):
        PEERS.append(
            Peer(
                name=f"{name} + hottest on every node{suffix}",
                place=by_nodes(split, everywhere=True, by_load=by_load),
                package=package,
                needs_redundant=True,
            )
        )
