"""Simulated annealing of slot contents on the exact, deduplicated objective with balance inside it.

Without redundant experts the starts are linear, eplb, spectral and random: every start is annealed with a part of the
moves, then the best of them with the rest. With redundant experts the start is a locality solution (annealed with the
redundant slots empty, then filled with copies of the hottest experts): one long search gains more than several short
ones. The best map seen under `LayerProblem.score` wins.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.cluster import MOST_NODES
from placement.cost.covers import EXACT_NODES
from placement.cost.kernel_chances import BY_HASH, BY_RANK, HOME_FIRST, NEAREST, Worlds
from placement.solvers.annealing.anneal_chance import anneal_chance
from placement.solvers.annealing.anneal_common import Costs, Incidence, costs_of, incidence
from placement.solvers.annealing.anneal_copies import anneal_copies
from placement.solvers.annealing.anneal_single import anneal_single
from placement.solvers.eplb import Eplb
from placement.solvers.linear import linear_map
from placement.solvers.moves import capped_copies, separate_copies
from placement.solvers.problem import LayerProblem, LayerSolution
from placement.solvers.spectral import spectral_map
from placement.support.hash64 import GOLDEN

Row = npt.NDArray[np.int32]
Run = Callable[[Row, float, float, float, int, np.uint64], None]  # row (in place), price, hot, cold, moves, seed
Kernel = Callable[[Row, Incidence, Costs, float, float, int, np.uint64], float]

MOVES, REPLICA_MOVES = 435_000, 480_000
MOVES_OF_EXPERT = 1700, 7000  # fewest and most moves for each expert, where none has a copy
SHARE_ON_TWO_NODES = 0.8  # of these moves: a move costs twice what it does on four nodes, and fewer are enough
MOST_MOVES_OF_SLOT = 6000  # where experts have copies
UPDATE_WORK = 2400.0  # entries that an accepted move of a copy may change before there are fewer moves
SETS_OF_MANY_NODES, MOVES_ON_MANY_NODES, SINGLE_MOVES_ON_MANY_NODES = 2048, 100_000, 60_000
CHANCE_MOVES, CHANCE_WORK = 125_000, 1000.0  # where copies are chosen by chance: moves, and entries to change a move
CHANCE_RUN = 1000  # number of the first run for a rule
PAIRS: tuple[tuple[int, int], ...] = ((HOME_FIRST, NEAREST), (BY_RANK, BY_HASH))
ALIKE: dict[int, tuple[int, int]] = {rule: pair for pair in PAIRS for rule in pair}
HOT_SETS, HOT_SETS_OF_COPIES, HOT_LOADS = 8192, 4096, 24
SMALL_SLOTS = 16  # on so few, one long search can end where no single move leads on: others begin elsewhere
SEGMENTS = 4  # a search looks at its deadline between these parts


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """How a run cools, in as many segments as there are prices; each goes on from the best map of the one before.

    hot, cold  first and last temperature, in units of a token's assignments / E: the sends per token that one average
               expert's move changes
    prices     of imbalance, in parts of the problem's: a high price makes the landscape rugged
    """

    hot: float
    cold: float
    prices: tuple[float, ...] = (1,)


SINGLE = Schedule(hot=0.06, cold=0.003)
HOT, COLD = Schedule(hot=0.06, cold=0.02), Schedule(hot=0.02, cold=0.003)  # SINGLE, in two parts
HOT_SHARE = 1 / 3  # share of the moves that are hot
QUENCH = Schedule(hot=0.02, cold=0.003)
COPIES_HOT = Schedule(hot=0.04, cold=0.0225, prices=(0.5,))
COPIES = Schedule(hot=0.0225, cold=0.004, prices=(0.7, 1, 1))
HOT_SHARE_OF_COPIES = 0.4  # most hot moves are accepted, and an accepted move is dear
COPIES_FOR_BALANCE = Schedule(hot=0.005, cold=0.0005, prices=(1, 1, 1, 1))  # for objectives without sends
CHANCE = Schedule(hot=0.05, cold=0.005, prices=(0.5, 0.7, 1, 1))
COPIES_ON_MANY_NODES = Schedule(hot=0.006, cold=0.002, prices=(0.6, 0.8, 1))


class Anneal:
    name = "anneal"

    def unsupported(self, problem: LayerProblem) -> str | None:
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        search = _Search(problem)
        row = reduce(search.better, problem.starts, search.best_row())  # the answer is no worse than any start
        return LayerSolution(solver=self.name, phy2log_P=row, status="limit" if search.stopped else "feasible")

    def polish(self, problem: LayerProblem, row: Row) -> LayerSolution:
        """A map with one copy per expert, annealed with a tenth of the moves from a low temperature."""
        search = _Search(problem)
        moves = max((problem.options.work_limit or MOVES) // 10, 1)
        return LayerSolution(solver=self.name, phy2log_P=search.anneal_single(row, moves, QUENCH))


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
        if flattened and self.problem.transport.flattened is not None:
            # every rank a node of its own: few ranks instead of few nodes
            flat_options = replace(options, transport=self.problem.transport.flattened)
            flat_problem = replace(self.problem, cluster=cluster.flat(), options=flat_options)
            row = self.better(row, self._replicas(flat_problem))
        if (rule := self.problem.choice.chances) is not None:
            row = self.better(row, self._by_chance(row, rule))
        return row

    def _single(self) -> Row:
        problem, slots = self.problem, self.problem.cluster.num_slots
        fewest, most = MOVES_OF_EXPERT
        share = SHARE_ON_TWO_NODES if problem.cluster.num_nodes == 2 else 1
        moves = problem.options.work_limit or int(share * min(max(MOVES, fewest * slots), most * slots))
        shuffled = np.random.default_rng(problem.seed).permutation(slots).astype(np.int32)
        starts = [
            spectral_map(problem.coact_EE, problem.load_E, problem.cluster),
            Eplb().solve_layer(problem).phy2log_P,
            linear_map(slots, slots),
            shuffled,
            *problem.starts,
        ]
        hot_moves, quench_moves = int(HOT_SHARE * moves), moves // 10
        rough = self._run(_rough(problem, HOT_SETS))
        best = self._quench(rough, starts, quench_moves, QUENCH)
        hot = self._anneal(rough, best, hot_moves, HOT)
        return self.better(best, self._anneal(self._run(problem), hot, moves - hot_moves - quench_moves, COLD))

    def _run(self, problem: LayerProblem) -> Run:
        """Of one copy per expert."""
        slots, alone = problem.cluster.num_slots, not problem.transport.distinct
        return _run(anneal_single, incidence(problem, slots, alone=alone), costs_of(problem, slots))

    def anneal_single(self, start: Row, moves: int, schedule: Schedule) -> Row:
        return self._anneal(self._run(self.problem), start, moves, schedule)

    def _replicas(self, problem: LayerProblem) -> Row:
        """Few sends where copies are chosen for it (`min-nodes`)."""
        experts, slots = problem.num_experts, problem.cluster.num_slots
        moves = problem.options.work_limit or _moves_of_copies(problem)
        many_nodes = problem.cluster.num_nodes > EXACT_NODES
        single_moves = moves // 4
        if many_nodes and problem.options.work_limit is None:
            single_moves = SINGLE_MOVES_ON_MANY_NODES
        # slots beyond one for each expert hold experts of their own at first, in no set and without load
        extra = slots - experts
        spectral = spectral_map(
            np.pad(problem.coact_EE, (0, extra)), np.pad(problem.load_E, (0, extra)), problem.cluster
        )
        run = _run(anneal_single, incidence(problem, slots), costs_of(problem, slots))
        local = _fill(problem, self._anneal(run, spectral, single_moves, SINGLE))
        thinned = _thinned(problem)
        run = _run(search_of(problem), incidence(thinned, experts), costs_of(thinned, experts))
        schedule, starts = COPIES, [local, *problem.starts]
        if many_nodes:
            schedule = COPIES_ON_MANY_NODES
        elif problem.send_price <= 0:
            schedule, starts = COPIES_FOR_BALANCE, [*starts, Eplb().solve_layer(problem).phy2log_P]
        best = row = reduce(self.better, starts)
        if schedule is COPIES:
            rough = _rough(problem, HOT_SETS_OF_COPIES)
            hot_run = _run(anneal_copies, incidence(rough, experts), costs_of(rough, experts))
            hot_moves = int(HOT_SHARE_OF_COPIES * moves)
            row, moves = self._anneal(hot_run, best, hot_moves, COPIES_HOT), moves - hot_moves
        best = self.better(best, self._anneal(run, row, moves, schedule))
        if slots > SMALL_SLOTS:
            return best
        elsewhere = [linear_map(experts, slots), Eplb().solve_layer(problem).phy2log_P]
        return self.better(best, self._quench(run, elsewhere, moves, schedule))

    def _by_chance(self, start: Row, rule: int) -> Row:
        """From a map that is good if copies are chosen well to one that is good if they are chosen by this rule.

        Rules that are alike are searched for too, and the best map wins: none is better under another rule's name.
        """
        problem, best = _thinned(self.problem), start
        inc = incidence(problem, problem.num_experts, alone=not problem.transport.distinct)
        costs = costs_of(problem, problem.num_experts)
        moves = min(CHANCE_MOVES, problem.options.work_limit or CHANCE_MOVES)
        for one in ALIKE.get(rule, (rule,)):
            worlds = Worlds.of(one, problem.cluster, costs.fare_HX.shape[1])
            run = _run(anneal_chance, inc, costs, worlds, worlds.fare_HXW(costs.fare_HX), CHANCE_WORK)
            self.runs = CHANCE_RUN * (one + 1)  # the same random numbers, for whichever rule the map is
            best = self.better(best, self._anneal(run, start, moves, CHANCE))
        return best

    def _quench(self, run: Run, starts: list[Row], moves: int, schedule: Schedule) -> Row:
        """The best of what the starts become, each with its part of the moves."""
        return reduce(self.better, [self._anneal(run, start, moves // len(starts), schedule) for start in starts])

    def better(self, one: Row, other: Row) -> Row:
        return other if self.problem.score(other).better_than(self.problem.score(one)) else one

    def _anneal(self, run: Run, start: Row, moves: int, schedule: Schedule) -> Row:
        row = start.copy()
        scale = (self.problem.assignments or 1.0) / self.problem.num_experts
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


def search_of(problem: LayerProblem) -> Kernel:
    """The search for the number of copies and nodes of a layer."""
    return anneal_copies if problem.num_redundant else anneal_single


def _rough(problem: LayerProblem, most_sets: int) -> LayerProblem:
    """Fewer sets and bootstraps for the hot part of a search: what they blur is less than what its temperature does."""
    pick_B = _evenly(len(problem.load_BE), HOT_LOADS)  # row 0, the exact load, is among the rows
    few = _with_sets(problem, _evenly(len(problem.sets_UK), most_sets))
    return replace(few, load_BE=problem.load_BE[pick_B])


def _evenly(size: int, most: int) -> npt.NDArray[np.int64]:
    """At most so many of `size` places, from all of them evenly, the first among them."""
    few = min(size, most)
    return np.arange(few) * size // max(few, 1)


def _thinned(problem: LayerProblem) -> LayerProblem:
    """Fewer sets, evenly from all of them, where copies on many nodes make each set dear."""
    if problem.cluster.num_nodes <= EXACT_NODES or len(problem.sets_UK) <= SETS_OF_MANY_NODES:
        return problem
    return _with_sets(problem, _evenly(len(problem.sets_UK), SETS_OF_MANY_NODES))


def _with_sets(problem: LayerProblem, pick_U: npt.NDArray[np.int64]) -> LayerProblem:
    home_U = None if problem.home_U is None else problem.home_U[pick_U]
    return replace(problem, sets_UK=problem.sets_UK[pick_U], count_U=problem.count_U[pick_U], home_U=home_U)


def _moves_of_copies(problem: LayerProblem) -> int:
    """Fewer where a move is dearer: the more copies there are, and the more sets an accepted one changes."""
    pairs = len(problem.sets_UK) * problem.assignments**2
    update = pairs / problem.num_experts * max(1.0, problem.cluster.num_nodes / 8)
    few_copies = problem.num_experts / problem.cluster.num_slots
    most = min(REPLICA_MOVES * few_copies, MOST_MOVES_OF_SLOT * problem.cluster.num_slots)
    moves = max(int(most * min(1.0, UPDATE_WORK / max(update, 1.0))), 1)
    return moves if problem.cluster.num_nodes <= EXACT_NODES else min(moves, MOVES_ON_MANY_NODES)


def _run(anneal: Callable[..., float], inc: Incidence, costs: Costs, *more: Any) -> Run:
    """Runs of a kernel at parts of the price of imbalance; `more`: what it takes beside the books."""

    def run(row: Row, price: float, hot: float, cold: float, moves: int, seed: np.uint64) -> None:
        anneal(row, inc, costs._replace(price=costs.price * price), *more, hot, cold, moves, seed)

    return run


def _fill(problem: LayerProblem, row: Row) -> Row:
    """Replace the empty slots by copies of the experts with the highest load per copy."""
    num_experts, filled = problem.num_experts, row.copy()
    filled[row >= num_experts] = capped_copies(problem.load_E, problem.cluster)[0][num_experts:]
    return separate_copies(filled, problem.cluster, problem.load_E)
