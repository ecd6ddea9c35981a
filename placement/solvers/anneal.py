"""Simulated annealing of slot contents on the exact, deduplicated objective with balance inside it.

Every start is annealed with a part of the moves, then the best of them with the rest; the best map seen under
`LayerProblem.score` wins. Without redundant experts the starts are linear, eplb, spectral and random. With them: eplb,
and a locality solution (annealed with the redundant slots empty, then filled with copies of the hottest experts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from placement.cluster import MOST_NODES
from placement.cost.covers import EXACT_NODES
from placement.mixing import GOLDEN
from placement.problem import LayerProblem, LayerSolution
from placement.solvers.anneal_chance import anneal_chance
from placement.solvers.anneal_common import Balance, Incidence, balance, fare_per_copy_HX, incidence
from placement.solvers.anneal_replicas import anneal_replicas
from placement.solvers.anneal_single import anneal_single
from placement.solvers.eplb import Eplb
from placement.solvers.linear import linear_map
from placement.solvers.moves import separate_copies
from placement.solvers.spectral import spectral_map
from placement.topology import EVEN

Row = npt.NDArray[np.int32]
Run = Callable[[Row, float, float, float, int, np.uint64], None]  # row (in place), price, hot, cold, moves, seed

BY_CHANCE = ("local-first", "uniform")

MOVES, REPLICA_MOVES = 450_000, 600_000
UPDATE_WORK = 2400.0  # entries that an accepted move of a copy may change before there are fewer moves
SETS_OF_MANY_NODES, MOVES_ON_MANY_NODES = 2048, 20_000
CHANCE_WORK = 400_000_000  # factors of a product that a search may multiply where copies are chosen by chance
SEGMENTS = 4  # between which a deadline is looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a run cools, in as many segments as there are prices; each goes on from the best map of the one before.

    hot, cold  first and last temperature, in units of K / E sends per token: what one average expert's move changes
    prices     of imbalance, in parts of the problem's: a high price makes the landscape rugged
    """

    hot: float
    cold: float
    prices: tuple[float, ...] = (1,)


SINGLE = Schedule(hot=0.06, cold=0.003)
QUENCH = Schedule(hot=0.02, cold=0.003)
COPIES = Schedule(hot=0.04, cold=0.004, prices=(0.5, 0.7, 1, 1))


class Anneal:
    name = "anneal"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        search = _Search(_thinned(problem))
        row = search.best_row()
        return LayerSolution(solver=self.name, phy2log_P=row, status="limit" if search.stopped else "feasible")


class _Search:
    """One layer's annealing runs; `stopped` tells whether the deadline cut them."""

    def __init__(self, problem: LayerProblem) -> None:
        self.problem = problem
        self.stopped = False
        self.runs = 0

    def best_row(self) -> Row:
        if self.problem.num_redundant == 0:
            return self._single()
        row = self._replicas(self.problem)
        options, cluster = self.problem.options, self.problem.cluster
        flattened = self.problem.home_U is None and cluster.gpus_per_node > 1 and cluster.num_ranks <= MOST_NODES
        if options.transport == "rank" and flattened:
            # every rank a node of its own: few ranks instead of few nodes
            flat = replace(cluster, num_nodes=cluster.num_ranks, gpus_per_node=1, topology=EVEN)
            flat_problem = replace(self.problem, cluster=flat, options=replace(options, transport="node"))
            row = self._better(row, self._replicas(flat_problem))
        if options.replica_choice in BY_CHANCE:
            row = self._better(row, self._by_chance(row))
        return row

    def _single(self) -> Row:
        problem, slots = self.problem, self.problem.cluster.num_slots
        moves = problem.options.work_limit or MOVES
        shuffled = np.random.default_rng(problem.seed).permutation(slots).astype(np.int32)
        starts = [
            spectral_map(problem.coact_EE, problem.load_E, problem.cluster),
            Eplb().solve_layer(problem).phy2log_P,
            linear_map(slots, slots),
            shuffled,
            *problem.starts,
        ]
        alone = problem.options.transport == "assignment"
        run = partial(_run_single, incidence(problem, slots, alone=alone), balance(problem, slots))
        return self._quench_and_anneal(run, starts, moves // 10, QUENCH, moves - moves // 10, SINGLE)

    def _replicas(self, problem: LayerProblem) -> Row:
        """Few sends where copies are chosen for it (`min-nodes`)."""
        experts, slots = problem.num_experts, problem.cluster.num_slots
        moves = problem.options.work_limit or _moves_of_copies(problem)
        # slots beyond one for each expert hold experts of their own at first, in no set and without load
        extra = slots - experts
        spectral = spectral_map(
            np.pad(problem.coact_EE, (0, extra)), np.pad(problem.load_E, (0, extra)), problem.cluster
        )
        run = partial(_run_single, incidence(problem, slots), balance(problem, slots))
        local = _fill(problem, self._anneal(run, spectral, moves // 4, SINGLE))
        starts = [Eplb().solve_layer(problem).phy2log_P, local, *problem.starts]
        run = partial(_run_replicas, incidence(problem, experts), balance(problem, experts))
        return self._quench_and_anneal(run, starts, moves // 2, COPIES, moves // 2, COPIES)

    def _by_chance(self, start: Row) -> Row:
        """From a map that is good if copies are chosen well to one that is good if they are chosen by chance."""
        problem, options = self.problem, self.problem.options
        inc = incidence(problem, problem.num_experts, alone=options.transport == "assignment")
        fare_HX = fare_per_copy_HX(problem)
        local_first = options.replica_choice == "local-first"
        if not local_first and problem.home_U is None:  # neither the choice nor the token has a home
            fare_HX = fare_HX.mean(axis=0, keepdims=True)
        per_move = 2 * inc.sets_UK.size // problem.num_experts * inc.sets_UK.shape[1] * fare_HX.size
        moves = max(CHANCE_WORK // max(per_move, 1), 1)
        run = partial(_run_by_chance, inc, balance(problem, problem.num_experts), fare_HX, local_first)
        return self._anneal(run, start, min(moves, options.work_limit or moves), QUENCH)

    def _quench_and_anneal(
        self, run: Run, starts: list[Row], quench_moves: int, quench: Schedule, moves: int, schedule: Schedule
    ) -> Row:
        each = quench_moves // len(starts)
        best = reduce(self._better, [self._anneal(run, start, each, quench) for start in starts])
        return self._better(best, self._anneal(run, best, moves, schedule))

    def _better(self, one: Row, other: Row) -> Row:
        return other if self.problem.score(other).better_than(self.problem.score(one)) else one

    def _anneal(self, run: Run, start: Row, moves: int, schedule: Schedule) -> Row:
        row = start.copy()
        scale = self.problem.top_k / self.problem.num_experts
        prices = schedule.prices
        if self.problem.deadline is not None:
            prices = tuple(np.repeat(prices, -(-SEGMENTS // len(prices))).tolist())
        temperatures = np.geomspace(schedule.hot * scale, schedule.cold * scale, len(prices) + 1)
        for (begin, end), price in zip(pairwise(temperatures), prices, strict=True):
            self.stopped = self.stopped or self.problem.out_of_time()
            if self.stopped:
                break
            self.runs += 1
            seed = np.uint64((self.problem.seed + int(GOLDEN) * self.runs) % 2**64)
            run(row, price, float(begin), float(end), max(moves // len(prices), 1), seed)
        return row


def _thinned(problem: LayerProblem) -> LayerProblem:
    """Fewer sets, evenly from all of them, where copies on many nodes make each set dear.

    A layer of DeepSeek-V3's shape on 40 nodes takes a tenth of the time and costs 2% more.
    """
    few = problem.cluster.num_nodes <= EXACT_NODES or len(problem.sets_UK) <= SETS_OF_MANY_NODES
    if few or problem.num_redundant == 0:
        return problem
    pick = np.arange(SETS_OF_MANY_NODES) * len(problem.sets_UK) // SETS_OF_MANY_NODES
    home_U = None if problem.home_U is None else problem.home_U[pick]
    return replace(problem, sets_UK=problem.sets_UK[pick], count_U=problem.count_U[pick], home_U=home_U)


def _moves_of_copies(problem: LayerProblem) -> int:
    """Fewer where a move is dearer: the more copies there are, and the more sets an accepted one changes."""
    update = len(problem.sets_UK) * problem.top_k**2 / problem.num_experts * max(1.0, problem.cluster.num_nodes / 8)
    few_copies = (problem.num_experts / problem.cluster.num_slots) ** 3
    moves = max(int(REPLICA_MOVES * few_copies * min(1.0, UPDATE_WORK / max(update, 1.0))), 1)
    return moves if problem.cluster.num_nodes <= EXACT_NODES else min(moves, MOVES_ON_MANY_NODES)


def _run_single(
    inc: Incidence, bal: Balance, row: Row, price: float, hot: float, cold: float, moves: int, seed: np.uint64
) -> None:
    anneal_single(row, inc, bal._replace(price=bal.price * price), hot, cold, moves, seed)


def _run_replicas(
    inc: Incidence, bal: Balance, row: Row, price: float, hot: float, cold: float, moves: int, seed: np.uint64
) -> None:
    anneal_replicas(row, inc, bal._replace(price=bal.price * price), hot, cold, moves, seed)


def _run_by_chance(
    inc: Incidence,
    bal: Balance,
    fare_HX: npt.NDArray[np.float64],
    local_first: bool,
    row: Row,
    price: float,
    hot: float,
    cold: float,
    moves: int,
    seed: np.uint64,
) -> None:
    priced = bal._replace(price=bal.price * price)
    anneal_chance(row, inc, priced, fare_HX, local_first, hot, cold, moves, seed)


def _fill(problem: LayerProblem, row: Row) -> Row:
    """Replace the empty slots by copies of the experts with the highest load per copy."""
    num_experts, load_E = problem.num_experts, problem.load_E
    filled = row.copy()
    copies = np.ones(num_experts)
    for p in np.flatnonzero(row >= num_experts):
        hottest = int(np.argmax(np.where(copies < problem.cluster.num_ranks, load_E / copies, -1.0)))
        filled[p] = hottest
        copies[hottest] += 1
    return separate_copies(filled, problem.cluster, load_E)
