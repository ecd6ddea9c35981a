"""The lowest rank imbalance with proof, on small layers: copies and packing at once, in whole numbers.

The search goes through the numbers of copies (an expert of c copies weighs load / c in each), and for each through the
packings that stay below the best map so far. Experts of equal load, and ranks of equal speed and filling, are
exchangeable: one order of them is looked at. Whole loads are multiplied by the least common multiple of the copies, so
that nothing is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from placement.core.cluster import Cluster
from placement.solvers.balancing.balance import balance_maps, check_groups
from placement.solvers.balancing.balance_exact_kernels import search
from placement.solvers.balancing.balance_kernels import highest

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Row = npt.NDArray[np.int32]

NODES = 20_000_000  # of the search tree, at most: about a second
WHOLE = 2**50  # sums of loads below it are exact in int64 and float64 alike
ROUNDED = 2**44  # what the sum of loads that are no whole numbers is scaled to


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactBalance:
    """A map, its imbalance (max / mean over ranks of load / speed), and whether no map has less.

    proven  exactly if loads are whole numbers and ranks alike; else up to a relative 1e-11
    """

    phy2log_P: Row
    imbalance: float
    proven: bool


def exact_balance(
    load_E: npt.NDArray[np.number], cluster: Cluster, *, num_groups: int | None = None, nodes: int = NODES
) -> ExactBalance:
    """The most balanced map of one layer in which every copy serves an even share, no expert twice on a rank.

    load_E      [E], any unit, 0 or more
    num_groups  keep every group of contiguous experts on one node; None: no such rule
    nodes       of the search tree, at most; where they run out, `proven` is False and the map the best so far

    Raises what `balance_maps` does.
    """
    load = np.ascontiguousarray(load_E, dtype=np.float64)
    start = balance_maps(load[None], cluster, num_groups=num_groups, keep_groups=num_groups is not None)[0]
    if num_groups is None:
        row, proven, _ = _exact_row(load, cluster.speed_G(), cluster.slots_per_gpu, start, nodes)
    else:
        row, proven = _exact_grouped(load, cluster, num_groups, start, nodes)
    mean = load.sum() / cluster.num_ranks
    imbalance = highest(row, load, 1 / cluster.speed_G()) / mean if mean > 0 else 1.0
    return ExactBalance(phy2log_P=row, imbalance=float(imbalance), proven=proven)


def _exact_row(load_E: Floats, speed_G: Floats, slots: int, start_P: Row, nodes: int) -> tuple[Row, bool, int]:
    """(map, proven, nodes left) of ranks of these speeds."""
    order_E = np.argsort(-load_E, kind="stable")
    most = min(len(speed_G), len(start_P) - len(load_E) + 1)
    weight_EC, exact = _weights(load_E[order_E], most)
    slack = 0.0 if exact and np.ptp(speed_G) == 0 else 1e-12
    rank_E = np.argsort(order_E).astype(np.int32)
    row, left = search(weight_EC, speed_G / speed_G.max(), slots, rank_E[start_P], slack, nodes)
    return order_E[row].astype(np.int32), left >= 0, left


def _weights(load_E: Floats, most: int) -> tuple[Ints, bool]:
    """Weight of a copy of each expert if it has 1, 2, ... `most`, int64 [E, most], in one unit; whether it is exact."""
    whole = math.lcm(*range(1, most + 1))
    if (load_E == np.rint(load_E)).all() and float(load_E.sum()) * whole < WHOLE:
        return (load_E.astype(np.int64) * whole)[:, None] // np.arange(1, most + 1), True
    scaled = load_E * (ROUNDED / max(float(load_E.sum()), 1e-300))
    return np.rint(scaled[:, None] / np.arange(1, most + 1)).astype(np.int64), False


def _exact_grouped(load_E: Floats, cluster: Cluster, num_groups: int, start_P: Row, nodes: int) -> tuple[Row, bool]:
    """Every way to share out the groups, every node by itself."""
    check_groups(len(load_E), cluster, num_groups)
    size, each = len(load_E) // num_groups, num_groups // cluster.num_nodes
    speed_NG = cluster.speed_G().reshape(cluster.num_nodes, -1)
    alike = bool((speed_NG == speed_NG[0]).all())
    best, least, proven = start_P, highest(start_P, load_E, 1 / cluster.speed_G()), True
    solved: dict[tuple[tuple[int, ...], bytes], tuple[Row, float]] = {}
    for parts in _partitions(tuple(range(num_groups)), each, alike):
        rows = []
        for speed_G, groups in zip(speed_NG, parts, strict=True):
            key = (groups, speed_G.tobytes())
            if key not in solved:
                own = np.concatenate([np.arange(g * size, (g + 1) * size) for g in groups])
                local = Cluster(
                    num_nodes=1,
                    gpus_per_node=len(speed_G),
                    slots_per_gpu=cluster.slots_per_gpu,
                    gpu_speeds=tuple(speed_G),
                )
                begin = balance_maps(load_E[own][None], local)[0]
                row, done, nodes = _exact_row(load_E[own], speed_G, cluster.slots_per_gpu, begin, max(nodes, 0))
                proven &= done
                solved[key] = own[row].astype(np.int32), highest(row, load_E[own], 1 / speed_G)
            rows.append(solved[key])
            if rows[-1][1] >= least:
                break
        else:
            best, least = np.concatenate([row for row, _ in rows]), max(peak for _, peak in rows)
    return best, proven


def _partitions(items: tuple[int, ...], each: int, alike: bool) -> Iterator[list[tuple[int, ...]]]:
    """Ways to share out `items`, `each` a part; in any order of the parts if they are `alike`, else in every one."""
    if not items:
        yield []
        return
    for part in combinations(items, each):
        if alike and part[0] != items[0]:
            return
        rest = tuple(item for item in items if item not in part)
        for others in _partitions(rest, each, alike):
            yield [part, *others]
