"""Maps of one layer for several parts, by loads alone: one that is searched for, or all that may be best."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from placement.solvers.balancing.even_rows import MOVES, WORST, even_row
from placement.solvers.exact.exhaustive import all_ways, num_ways, numbered
from placement.solvers.problem import LayerProblem

MOST_WAYS = 100_000  # to share out experts to ranks, that are gone through
MOST_MAPS = 500  # that may be best
MOVES_FOR_PARTS = 10 * MOVES  # one search for all parts
CHUNK = 1 << 14  # ways in memory at once

Row = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]


def maps_for_parts(parts: Sequence[LayerProblem]) -> tuple[list[Row], bool]:
    """Maps, and whether they are all that may be best: whatever the weights of parts, no other map has a lower mean.

    Args:
        parts: the layer under the loads of each part, whose objective is balance alone.
    """
    whole, kinds = parts[0], numbered(parts[0].cluster.speed_G().tolist())
    if not whole.num_redundant and num_ways(kinds, whole.cluster.slots_per_gpu) <= MOST_WAYS:
        ways_VE = all_ways(kinds, whole.cluster.slots_per_gpu)
        cost_VW = np.concatenate([_costs(some, parts) for some in np.array_split(ways_VE, -(-len(ways_VE) // CHUNK))])
        best = _undominated(cost_VW)
        if len(best) <= MOST_MAPS:
            return [np.argsort(ways_VE[v], kind="stable").astype(np.int32) for v in best], True
    load_WE = np.stack([part.load_E for part in parts])
    moves = whole.options.work_limit or MOVES_FOR_PARTS
    return [even_row(load_WE, whole.cluster, power=WORST, moves=moves, seed=whole.seed)], False


def _costs(ways_VE: npt.NDArray[np.int8], parts: Sequence[LayerProblem]) -> Floats:
    """Expected imbalance of each way under every part, float64 [V, W]."""
    load_EB = np.concatenate([part.load_BE for part in parts]).T
    peak_VB = np.zeros((len(ways_VE), load_EB.shape[1]))
    for g, speed in enumerate(parts[0].cluster.speed_G().tolist()):
        np.maximum(peak_VB, (ways_VE == g) @ load_EB / speed, out=peak_VB)
    ends = np.cumsum([len(part.load_BE) for part in parts])[:-1]
    means = [one_VB.mean(axis=1) for one_VB in np.split(peak_VB, ends, axis=1)]
    return np.stack(means, axis=1) * parts[0].cluster.num_ranks


def _undominated(cost_VW: Floats) -> list[int]:
    """Ways of which no other costs less or the same under every part; more than MOST_MAPS are not looked for."""
    left = np.argsort(cost_VW.sum(axis=1), kind="stable")
    best: list[int] = []
    while len(left) and len(best) <= MOST_MAPS:
        best.append(int(left[0]))
        left = left[(cost_VW[left] < cost_VW[left[0]]).any(axis=1)]
    return best
