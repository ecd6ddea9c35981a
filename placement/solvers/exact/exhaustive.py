"""Every map of a small layer: the optimum of the exact objective by looking at all of them, one copy an expert.

What is sent depends only on which experts share a unit (a node; a rank where the transport sends to ranks). All ways to
share out the experts to units are scored, those first that promise most by their sends and the loads of the units;
within one, the ways to split each unit over its ranks, until none that is left can be better.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import factorial, prod

import numpy as np
import numpy.typing as npt

from placement.bounds.layer_bound import smallest_imbalance
from placement.cost.transport import fare_HX
from placement.errors import InfeasibleError, LimitError
from placement.solvers.balancing.balance_solver import Balance
from placement.solvers.base import HOMES_KNOWN
from placement.solvers.exact.exhaustive_kernels import all_ways, best_rank_map, peaks_of_ways, sends_of_ways
from placement.solvers.problem import LayerProblem, LayerSolution

MOST_WAYS = 200_000  # to share out experts, or a node's experts
MOST_LOOKS = 1_000_000_000  # at an expert of a set, one a way: about a second
STEPS = 5_000_000  # splits of nodes, and their combinations: a few seconds at most
ROUNDING = 1e-11  # relative: sums of floats in another order differ by less


class Exhaustive:
    """`optimal` unless a limit cut it short; `start` is a map that answers are no worse than."""

    name = "exhaustive"

    def __init__(self, start: npt.NDArray[np.int32] | None = None) -> None:
        self.start = start

    def unsupported(self, problem: LayerProblem) -> str | None:
        if problem.num_redundant:
            return "it goes through maps of one copy an expert, and there are redundant slots"
        if problem.home_U is not None:
            return HOMES_KNOWN
        units = _Units(problem)
        ways = max(units.num_ways, max(units.num_splits))
        if ways > MOST_WAYS:
            return f"there are {ways} ways to share out {problem.num_experts} experts; {MOST_WAYS} are allowed"
        looks = units.num_ways * problem.sets_UK.size
        if looks > MOST_LOOKS:
            return f"{len(problem.sets_UK)} distinct top-{problem.top_k} sets are too many for {ways} ways"
        if problem.options.max_node_imbalance is not None and len(units.fare_X) != problem.cluster.num_nodes:
            return "a cap on nodes needs the transport of nodes"
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        """Raises InfeasibleError if no map is within the caps, LimitError if none was found before the limit."""
        start = Balance().solve_layer(problem).phy2log_P if self.start is None else self.start
        score = problem.score(start)
        if problem.out_of_time():
            return LayerSolution(solver=self.name, phy2log_P=start, status="limit")
        row, finished = _search(problem, score.objective if score.feasible else np.inf)
        if len(row) and problem.score(row).better_than(score):
            start, score = row, problem.score(row)
        if not score.feasible:
            caps = problem.options.caps
            if finished:
                raise InfeasibleError(
                    f"{caps} is proven impossible for layer {problem.index}: no map of one copy an expert meets it; "
                    "raise it or add --redundant-experts"
                )
            raise LimitError(
                f"no map with {caps} was found; the best has {score.imbalance:.4f} over GPUs and "
                f"{score.node_imbalance:.4f} over nodes; raise it or --work-limit"
            )
        if not finished:
            return LayerSolution(solver=self.name, phy2log_P=start, status="limit")
        bound = score.objective * (1 - ROUNDING)
        return LayerSolution(solver=self.name, phy2log_P=start, status="optimal", bound=bound)


class _Units:
    """What experts are shared out to: their fares, speeds, and the numbers of ways."""

    def __init__(self, problem: LayerProblem) -> None:
        cluster = problem.cluster
        self.fare_X = fare_HX(cluster, problem.options.transport).mean(axis=0) * problem.send_price
        self.speed_XR = cluster.speed_G().reshape(len(self.fare_X), -1)
        self.size, self.slots = problem.num_experts // len(self.fare_X), cluster.slots_per_gpu
        kinds = [(fare, *sorted(speed)) for fare, speed in zip(self.fare_X, self.speed_XR.tolist(), strict=True)]
        self.kind_X = _numbered(kinds)
        self.num_ways = _num_ways(self.kind_X, self.size)
        self.kind_XR = [_numbered(speed) for speed in self.speed_XR.tolist()]
        self.num_splits = [_num_ways(kind_R, self.slots) for kind_R in self.kind_XR]


def _numbered(kinds: Sequence[object]) -> tuple[int, ...]:
    return tuple(kinds.index(kind) for kind in kinds)


def _num_ways(kinds: tuple[int, ...], size: int) -> int:
    """To share out items to units, `size` each, where units of one kind are exchangeable."""
    same = prod(factorial(kinds.count(kind)) for kind in set(kinds))
    return int(factorial(len(kinds) * size) // (factorial(size) ** len(kinds) * same))


@lru_cache(maxsize=16)
def _ways(kinds: tuple[int, ...], size: int) -> npt.NDArray[np.int8]:
    ways = all_ways(np.array(kinds), size, _num_ways(kinds, size))
    ways.setflags(write=False)
    return ways


def _search(problem: LayerProblem, best: float) -> tuple[npt.NDArray[np.int32], bool]:
    """(a better map than `best`, or nothing; whether all were looked at)."""
    units, options, ranks = _Units(problem), problem.options, problem.cluster.num_ranks
    ways_WE = _ways(units.kind_X, units.size)
    sets_UK, weight_U = problem.sets_UK, problem.count_U / problem.count_U.sum()
    if options.transport == "assignment":  # every assignment is sent on its own
        weight_U = np.bincount(sets_UK.ravel(), np.repeat(weight_U, problem.top_k), problem.num_experts)
        sets_UK = np.arange(problem.num_experts, dtype=np.int32)[:, None]
    if units.fare_X.any():
        sends_W = sends_of_ways(ways_WE, np.ascontiguousarray(sets_UK), weight_U, units.fare_X)
    else:
        sends_W = np.zeros(len(ways_WE))
    load_EB = np.ascontiguousarray(problem.load_BE.T) * ranks
    floor_B = np.array([smallest_imbalance(load_E, problem.cluster) for load_E in problem.load_BE])
    mean_W, first_W = peaks_of_ways(ways_WE, load_EB, 1 / units.speed_XR.sum(axis=1), floor_B)
    lower_W = sends_W + problem.balance_price * mean_W * (1 - ROUNDING)
    if options.max_node_imbalance is not None:
        lower_W[first_W > options.max_node_imbalance + 1e-9] = np.inf
    splits = [_ways(kind_R, units.slots) for kind_R in units.kind_XR]
    split_XVI = np.full((len(splits), max(map(len, splits)), units.size), -1, dtype=np.int8)
    for x, split in enumerate(splits):
        split_XVI[x, : len(split)] = split
    row, _, left = best_rank_map(
        np.argsort(lower_W, kind="stable"),
        lower_W,
        ways_WE,
        sends_W,
        split_XVI,
        load_EB,
        np.ascontiguousarray(1 / units.speed_XR),
        problem.balance_price,
        np.inf if options.max_imbalance is None else options.max_imbalance + 1e-9,
        best - abs(best) * ROUNDING if np.isfinite(best) else best,
        min(problem.options.work_limit or STEPS, STEPS),
    )
    return row, left >= 0
