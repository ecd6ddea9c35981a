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
from placement.errors import InfeasibleError
from placement.solvers.balancing.balance_solver import Balance
from placement.solvers.base import HOMES_KNOWN, no_map_found
from placement.solvers.problem import LayerProblem, LayerSolution

MOST_WAYS = 100_000  # most ways to share out a layer's experts to units, or a unit's experts to ranks
MOST_LOOKS = 1_000_000_000  # most experts of sets looked at, over all ways: about a second
STEPS = 5_000_000  # most splits of units, and combinations of splits: a few seconds
STEPS_OF_WAY = 250  # fewest steps that a way counts
ROUNDING, MARGIN = 1e-11, 1e-12  # relative: of the objective, of a floor; sums in another order differ by less
CHUNK, MOST_PEAKS = 1 << 22, 1 << 24  # pairs of a way and a set, peaks of combined splits, that are in memory at once

Floats = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.int8]
Row = npt.NDArray[np.int32]


class Exhaustive:
    """`optimal` unless a limit cut the search short; answers are no worse than the map `start`."""

    name = "exhaustive"

    def __init__(self, start: Row | None = None) -> None:
        self.start = start

    def unsupported(self, problem: LayerProblem) -> str | None:
        if problem.num_redundant:
            return "it goes through maps of one copy an expert, and there are redundant slots"
        if problem.home_U is not None:
            return HOMES_KNOWN
        units = _Units(problem)
        to_units = num_ways(units.kind_X, units.size)
        ways = max(to_units, *(num_ways(kind_R, units.slots) for kind_R in units.kind_XR))
        if ways > MOST_WAYS:
            return f"there are {ways} ways to share out {problem.num_experts} experts; {MOST_WAYS} are allowed"
        if to_units * problem.sets_UK.size > MOST_LOOKS:
            return f"{len(problem.sets_UK)} distinct top-{problem.top_k} sets are too many for {ways} ways"
        if problem.options.max_node_imbalance is not None and len(units.fare_X) != problem.cluster.num_nodes:
            return "a cap on nodes needs the transport of nodes"
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        """The best map.

        Raises:
            InfeasibleError: no map is within the caps.
            LimitError: no map within the caps was found in time.
        """
        start = Balance().solve_layer(problem).phy2log_P if self.start is None else self.start
        score = problem.score(start)
        if problem.out_of_time():
            return LayerSolution(solver=self.name, phy2log_P=start, status="limit")
        row, finished = _search(problem, score.objective if score.feasible else np.inf)
        if row is not None and problem.score(row).better_than(score):
            start, score = row, problem.score(row)
        if not score.feasible and finished:
            raise InfeasibleError(
                f"{problem.options.caps} is proven impossible for layer {problem.index}: no map of one copy an expert "
                "meets it; raise it or add --redundant-experts"
            )
        if not score.feasible:
            raise no_map_found(problem, score, "raise it or --work-limit")
        if not finished:
            return LayerSolution(solver=self.name, phy2log_P=start, status="limit")
        bound = score.objective * (1 - ROUNDING)
        return LayerSolution(solver=self.name, phy2log_P=start, status="optimal", bound=bound)


class _Units:
    """What experts are shared out to.

    fare_X     float64 [X], cost of a copy of a token to each unit
    speed_XR   float64 [X, R], relative speed of the ranks of each unit
    kind_X     number of each unit's kind: units of one kind are exchangeable; kind_XR of the ranks on each unit
    size       experts of a unit; slots of a rank
    """

    def __init__(self, problem: LayerProblem) -> None:
        cluster = problem.cluster
        self.fare_X = fare_HX(cluster, problem.options.transport).mean(axis=0) * problem.send_price
        self.speed_XR = cluster.speed_G().reshape(len(self.fare_X), -1)
        self.size, self.slots = problem.num_experts // len(self.fare_X), cluster.slots_per_gpu
        # where the busiest node counts, ranks of two nodes are not exchangeable
        node_X = np.arange(len(self.fare_X)) * cluster.num_nodes // len(self.fare_X)
        apart_X = node_X if problem.busy_share and len(self.fare_X) > cluster.num_nodes else np.zeros_like(node_X)
        rows = zip(apart_X.tolist(), self.fare_X.tolist(), self.speed_XR.tolist(), strict=True)
        self.kind_X = numbered([(apart, fare, *sorted(speed_R)) for apart, fare, speed_R in rows])
        self.kind_XR = [numbered(speed) for speed in self.speed_XR.tolist()]


def numbered(kinds: Sequence[object]) -> tuple[int, ...]:
    """A number for each kind, the same for those alike."""
    return tuple(kinds.index(kind) for kind in kinds)


def num_ways(kinds: tuple[int, ...], size: int) -> int:
    """How many rows `all_ways` has."""
    same = prod(factorial(kinds.count(kind)) for kind in set(kinds))
    return int(factorial(len(kinds) * size) // (factorial(size) ** len(kinds) * same))


@lru_cache(maxsize=16)
def all_ways(kinds: tuple[int, ...], size: int) -> Bytes:
    """All ways to share out items to units, `size` items each.

    Args:
        kinds: the kind of each unit. Units of one kind are exchangeable: they get their first items in order.
        size: items of a unit.

    Returns:
        The unit of every item, int8 [W, items], read-only.
    """
    ways_WE, held_WX = np.zeros((1, 0), dtype=np.int8), np.zeros((1, len(kinds)), dtype=np.int8)
    for _ in range(len(kinds) * size):
        may_WX = held_WX < size
        for x, kind in enumerate(kinds):
            for before in range(x):
                if kinds[before] == kind:  # an empty unit waits for those alike before it
                    may_WX[:, x] &= (held_WX[:, x] > 0) | (held_WX[:, before] > 0)
        way, unit = np.nonzero(may_WX)
        ways_WE = np.column_stack([ways_WE[way], unit.astype(np.int8)])
        held_WX = held_WX[way]
        held_WX[np.arange(len(way)), unit] += 1
    ways_WE.setflags(write=False)
    return ways_WE


def _sends_of_ways(problem: LayerProblem, ways_WE: Bytes, fare_X: Floats) -> Floats:
    """Fares of the distinct units that a token's experts are on, in the mean over the sampled tokens, float64 [W]; a
    share of them as if all nodes were as busy as the busiest."""
    nodes = problem.cluster.num_nodes
    into_NW = np.zeros((nodes, len(ways_WE)))
    if not fare_X.any():
        return np.zeros(len(ways_WE))
    weight_U, sets_UK = problem.count_U / problem.count_U.sum(), problem.sets_UK
    if not problem.transport.distinct:  # every assignment is sent on its own
        visits = np.bincount(sets_UK.ravel() + 1, np.repeat(weight_U, problem.top_k), problem.num_experts + 1)
        weight_U = visits[1:]
        sets_UK = np.arange(problem.num_experts, dtype=np.int32)[:, None]
    holds_EU = np.zeros((problem.num_experts + 1, len(sets_UK)), dtype=np.float32)
    np.put_along_axis(holds_EU, sets_UK.T, 1.0, axis=0)  # the places that short sets lack are row -1
    holds_EU = holds_EU[:-1]
    chunk = max(CHUNK // len(sets_UK), 1)
    for begin in range(0, len(ways_WE), chunk):
        some = slice(begin, begin + chunk)
        for x, fare in enumerate(fare_X):
            touched_WU = (ways_WE[some] == x).astype(np.float32) @ holds_EU > 0
            into_NW[x * nodes // len(fare_X), some] += fare * (touched_WU @ weight_U)
    sends_W: Floats = into_NW.sum(axis=0)
    busiest_W: Floats = nodes * into_NW.max(axis=0)
    return np.asarray(sends_W + problem.busy_share * (busiest_W - sends_W))


def _search(problem: LayerProblem, best: float) -> tuple[Row | None, bool]:
    """(a map whose objective is below `best`, if there is one; whether all maps were looked at or ruled out)."""
    units, options = _Units(problem), problem.options
    ways_WE = all_ways(units.kind_X, units.size)
    sends_W = _sends_of_ways(problem, ways_WE, units.fare_X)
    load_BE = problem.load_BE if problem.balance_price else problem.load_BE[:1]  # a cap concerns row 0 alone
    load_EB = np.ascontiguousarray(load_BE.T) * problem.cluster.num_ranks
    floor_B = np.array([smallest_imbalance(load_E, problem.cluster, MARGIN) for load_E in load_BE])
    # the most loaded rank is loaded as the units are in the mean at least
    load_XWB = np.stack([(ways_WE == x) @ load_EB / speed_R.sum() for x, speed_R in enumerate(units.speed_XR)])
    uneven_W = np.maximum(load_XWB.max(axis=0), floor_B).mean(axis=1)
    lower_W = sends_W + problem.balance_price * uneven_W
    if options.max_node_imbalance is not None:
        lower_W[load_XWB[:, :, 0].max(axis=0) > options.max_node_imbalance + 1e-9] = np.inf
    splitter = _Splitter(problem, units)
    row = None
    for w in np.argsort(lower_W, kind="stable"):
        below = best * (1 - ROUNDING)  # objectives are 0 or more
        if lower_W[w] >= below or splitter.steps < 0:
            break
        found = splitter.best_split(ways_WE[w], load_EB, sends_W[w], below)
        if found is not None:
            best, row = found
    return row, splitter.steps >= 0


class _Splitter:
    """Splits units over their ranks; `steps` is how many more splits may be looked at."""

    def __init__(self, problem: LayerProblem, units: _Units) -> None:
        cap = problem.options.max_imbalance
        self.price, self.cap = problem.balance_price, np.inf if cap is None else cap + 1e-9
        self.steps = min(problem.options.work_limit or STEPS, STEPS)
        self.speed_XR = units.speed_XR
        self.split_XVI = [all_ways(kind_R, units.slots) for kind_R in units.kind_XR]
        ranks_R1 = np.arange(units.speed_XR.shape[1])[:, None]
        self.on_XVRI = [(split_VI[:, None] == ranks_R1).astype(np.float64) for split_VI in self.split_XVI]

    def best_split(self, unit_E: Bytes, load_EB: Floats, sends: float, best: float) -> tuple[float, Row] | None:
        """(objective, map) of the best split of these units over ranks, or None if no map is below `best`."""
        member_XI = np.argsort(unit_E, kind="stable").reshape(len(self.speed_XR), -1)
        even_XB = load_EB[member_XI].sum(axis=1) / self.speed_XR.sum(axis=1)[:, None]
        rest_XB = np.concatenate([np.maximum.accumulate(even_XB[::-1])[::-1], np.zeros((1, even_XB.shape[1]))])
        peak_PB, chosen_PX = np.zeros((1, load_EB.shape[1])), np.zeros((1, 0), dtype=np.int64)
        self.steps -= STEPS_OF_WAY
        for x, (on_VRI, speed_R) in enumerate(zip(self.on_XVRI, self.speed_XR, strict=True)):
            peak_VB = (on_VRI @ load_EB[member_XI[x]] / speed_R[:, None]).max(axis=1)
            # were all other units split perfectly
            kept_V = np.flatnonzero((self._cost(sends, peak_VB, rest_XB[0]) < best) & (peak_VB[:, 0] <= self.cap))
            if len(kept_V) * peak_PB.size > MOST_PEAKS:
                self.steps = -1
                return None
            peak_PB = np.maximum(peak_PB[:, None], peak_VB[kept_V]).reshape(-1, peak_PB.shape[1])
            chosen_PX = np.column_stack([np.repeat(chosen_PX, len(kept_V), axis=0), np.tile(kept_V, len(chosen_PX))])
            self.steps -= len(on_VRI) + len(peak_PB)
            cost_P = self._cost(sends, peak_PB, rest_XB[x + 1])
            kept_P = np.flatnonzero(cost_P < best)
            peak_PB, chosen_PX, cost_P = peak_PB[kept_P], chosen_PX[kept_P], cost_P[kept_P]
            if len(kept_P) == 0:
                return None
        least = int(np.argmin(cost_P))
        ranks_XI = [split_VI[v] for split_VI, v in zip(self.split_XVI, chosen_PX[least], strict=True)]
        order_XI = np.argsort(ranks_XI, axis=1, kind="stable")
        return float(cost_P[least]), np.take_along_axis(member_XI, order_XI, axis=1).ravel().astype(np.int32)

    def _cost(self, sends: float, peak_XB: Floats, least_B: Floats) -> Floats:
        return np.asarray(sends + self.price * np.maximum(peak_XB, least_B).mean(axis=1))
