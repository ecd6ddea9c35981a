"""By which chance a unit, node or rank, serves an expert, of whom only the ranks that hold copies are known (numba).

A world is what else decides who serves: the home, the rank, the residue of a row's hash; worlds are alike likely. A
search takes every replica choice that does not look for few nodes for one of these rules; no rank holds an expert
twice there.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.support.kernel import inner_search_kernel

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ANY: int = 0
HOME_FIRST: int = 1
NEAREST: int = 2
BY_RANK: int = 3
BY_HASH: int = 4
HASHES = 12  # residues that a search tells apart; experts with 5 copies, or more than 6, are served a little unevenly


class Worlds(NamedTuple):
    """The worlds of a rule on a cluster.

    rule       one of the constants of this module
    home_W     int64 [W], the home node of each world; -1: any
    engine_G   int64 [G], the engine's number of each rank
    rank_G     int64 [G], the rank of each of the engine's numbers
    gpus_per_node, num_units: of the nodes, and how many units (nodes or ranks) get copies of tokens
    """

    rule: int
    home_W: Ints
    engine_G: Ints
    rank_G: Ints
    gpus_per_node: int
    num_units: int

    @staticmethod
    def of(rule: int, cluster: Cluster, num_units: int) -> Worlds:
        """Of a cluster whose units are its nodes or its ranks."""
        engine_G = cluster.engine_rank_G()
        home_W = {
            ANY: np.array([-1]),
            HOME_FIRST: np.arange(cluster.num_nodes),
            BY_HASH: np.full(HASHES, -1),
        }.get(rule, cluster.node_of_rank_G())
        return Worlds(rule, home_W.astype(np.int64), engine_G, np.argsort(engine_G), cluster.gpus_per_node, num_units)

    def fare_HXW(self, fare_HX: Floats) -> Floats:
        """What a copy to a unit costs in each world, float64 [N + 1, X, W]: a row a home, and the last of no home.

        Args:
            fare_HX: The same without worlds; a row a home and the last their mean.
        """
        homes = np.arange(len(fare_HX))
        apart = (self.home_W >= 0)[None]
        happens_HW = ~apart | (self.home_W == homes[:, None]) | (homes[:, None] == len(homes) - 1)
        row_HW = np.where(apart, self.home_W, homes[:, None])
        fare_HWX = fare_HX[row_HW] * (happens_HW / happens_HW.sum(axis=1, keepdims=True))[:, :, None]
        return np.ascontiguousarray(fare_HWX.transpose(0, 2, 1))


@inner_search_kernel
def chances(holds_G: Ints, worlds: Worlds, slowness_G: Floats, miss_XW: Floats, share_G: Floats) -> None:
    """Write the chance that a unit does not serve the expert, and what each rank serves of it, times `slowness_G`.

    holds_G  1 for each rank that holds the expert
    """
    num_ranks, num_worlds = holds_G.shape[0], worlds.home_W.shape[0]
    per_unit, gpus = num_ranks // worlds.num_units, worlds.gpus_per_node
    total = 0
    for g in range(num_ranks):
        total += 1 if holds_G[g] else 0
        share_G[g] = 0.0
    for x in range(worlds.num_units):
        for w in range(num_worlds):
            miss_XW[x, w] = 1.0
    for w in range(num_worlds):
        # the first of the ranks, and how many, that may serve; by the engine's numbers
        first, last, left = 0, num_ranks, total
        one = -1  # the only one, counted from the first
        if worlds.rule == HOME_FIRST:
            home, here = worlds.home_W[w], 0
            for g in range(home * gpus, (home + 1) * gpus):
                here += holds_G[g]
            if here > 0:
                first, last, left = home * gpus, (home + 1) * gpus, here
        elif worlds.rule == BY_HASH:
            one = w % total
        elif worlds.rule == BY_RANK:
            one = worlds.engine_G[w] % total
        elif worlds.rule == NEAREST:
            own = worlds.engine_G[w]
            near, here = own // gpus * gpus, 0
            for number in range(near, near + gpus):
                here += holds_G[worlds.rank_G[number]]
            if holds_G[w] > 0:
                first, last, left = own, own + 1, 1
            elif here > 0 and here < total:
                first, one = near, 0
        skip = 0
        for number in range(first, last):
            g = number if worlds.rule == HOME_FIRST else worlds.rank_G[number]
            if holds_G[g] == 0:
                continue
            if one >= 0 and skip != one:
                skip += 1
                continue
            skip += 1
            chance = 1.0 / left if one < 0 else 1.0
            miss_XW[g // per_unit, w] -= chance
            share_G[g] += slowness_G[g] * chance / num_worlds
    for x in range(worlds.num_units):
        for w in range(num_worlds):
            if miss_XW[x, w] < 1e-12:  # rounding
                miss_XW[x, w] = 0.0
    if worlds.rule == BY_HASH:
        for g in range(num_ranks):
            share_G[g] = slowness_G[g] * holds_G[g] / total
