"""Lower bounds that hold for every placement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.cluster import Cluster


def smallest_imbalance(load_E: npt.NDArray[np.floating], cluster: Cluster) -> float:
    """No map has a lower rank imbalance: a rank serves at least one copy, and the hottest copy is at least this hot.

    Copies are added greedily to the expert with the highest load per copy, which is optimal for the min-max.
    """
    load = np.asarray(load_E, dtype=np.float64)
    mean = load.sum() / cluster.num_ranks
    copies = np.ones(len(load))
    for _ in range(cluster.num_slots - len(load)):
        hottest = int(np.argmax(load / copies))
        if copies[hottest] >= cluster.num_ranks:
            break
        copies[hottest] += 1
    fastest = float(cluster.speed_G().max())
    return max(1.0, float((load / copies).max() / fastest / mean)) if mean > 0 else 1.0
