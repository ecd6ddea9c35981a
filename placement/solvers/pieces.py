"""The kernels of a solve, in pieces that are compiled side by side: tiny layers, each through one part of a solver.

What only few solves need (balance alone, exact solvers, the tight bound) is compiled at its first call.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from placement.bounds.dual_ascent import AscentStep
from placement.bounds.set_batches import ascend_batches
from placement.bounds.set_partitions import ascend_sets
from placement.bounds.spectral_bound import QUICK_EXPERTS, add_lines
from placement.bounds.token_sets import SetMultipliers
from placement.core.cluster import Cluster
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.kernel_chances import HOME_FIRST, Worlds
from placement.cost.kernel_single import cost_single
from placement.cost.node_families import MOST_NODES as NODES_OF_FAMILIES
from placement.cost.transports import TRANSPORTS
from placement.solvers.annealing.anneal_chance import anneal_chance
from placement.solvers.annealing.anneal_common import costs_of, incidence
from placement.solvers.annealing.anneal_copies import anneal_copies, copies_kernel
from placement.solvers.annealing.anneal_single import anneal_single, single_kernel
from placement.solvers.annealing.copy_books import books_class
from placement.solvers.balancing.even_rows import anneal_rows, even_row, pack
from placement.solvers.eplb import Eplb, eplb_row
from placement.solvers.moves import separate
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.solvers.prove import prove
from placement.support.compiling import CompilePiece

EXPERTS, COPIES, TOP_K = 8, 4, 2
MANY_NODES = 6  # too many for families
WIDE_EXPERTS = 260  # more than 256 experts, whose ids take two bytes
NEEDED_BY = ("auto", "anneal")
MOVES, SEED = 4, np.uint64(0)


def pieces_of(num_experts: int, cluster: Cluster, options: Options, *, shows_parts: bool = False) -> list[CompilePiece]:
    """What layers of such a problem need, the largest first; with `shows_parts` also what tells of parts of traffic."""
    even = [EVEN_ROWS] if shows_parts else []
    if options.solver not in NEEDED_BY or not options.sends_count:
        return even
    wide = num_experts > 256
    if cluster.num_slots == num_experts:
        bound = [_bound_of(num_experts)] if options.bound != "none" else []
        return [SINGLE, STARTS, *even, WIDE_COST if wide else COST, *bound]
    by_chance = [CHANCE] if REPLICA_CHOICES.make(options.replica_choice).chances is not None else []
    bounds = [COPIES_BOUND, *([MANY_BOUND] if num_experts > QUICK_EXPERTS else [])]
    bound = bounds if options.bound != "none" else []
    return [
        *_searches_of(cluster, options),
        SINGLE,
        *by_chance,
        _cost_of_copies(options.replica_choice, cluster.num_nodes),
        STARTS,
        *even,
        *bound,
    ]


def _bound_of(num_experts: int) -> CompilePiece:
    return MANY_BOUND if num_experts > QUICK_EXPERTS else BOUND


def _searches_of(cluster: Cluster, options: Options) -> list[CompilePiece]:
    """Searches with copies; where ranks are what copies go to, one takes ranks for nodes (`anneal`)."""
    flattened = TRANSPORTS.make(options.transport).flattened is not None
    nodes = [cluster.num_nodes, *([cluster.num_ranks] if flattened else [])]
    return list({books_class(number): COPIES_BY_BOOKS[books_class(number)] for number in nodes}.values())


def all_pieces() -> list[CompilePiece]:
    """What layers of any problem need, the largest first."""
    costs = {
        piece.kernels: piece
        for piece in (_cost_of_copies(choice, nodes) for choice in REPLICA_CHOICES for nodes in (2, MANY_NODES))
    }
    return [
        *COPIES_BY_BOOKS.values(),
        SINGLE,
        CHANCE,
        *costs.values(),
        STARTS,
        COPIES_BOUND,
        COST,
        WIDE_COST,
        EVEN_ROWS,
        MANY_BOUND,
        BOUND,
    ]


def _cost_of_copies(choice: str, num_nodes: int) -> CompilePiece:
    nodes = 2 if num_nodes <= NODES_OF_FAMILIES else MANY_NODES
    kernels = REPLICA_CHOICES.make(choice).kernels(nodes)
    return CompilePiece(run=compile_copies_cost, arguments=(choice, str(nodes)), kernels=kernels)


def _layer(num_experts: int = EXPERTS, copies: int = 0, options: Options | None = None) -> LayerProblem:
    """Every expert is visited once with its neighbour."""
    expert_E = np.arange(num_experts)
    sets_EK = np.sort(np.stack([expert_E, (expert_E + 1) % num_experts], axis=1), axis=1).astype(np.int32)
    coact_EE = np.zeros((num_experts, num_experts), dtype=np.int64)
    coact_EE[sets_EK[:, 0], sets_EK[:, 1]] = coact_EE[sets_EK[:, 1], sets_EK[:, 0]] = 1
    return LayerProblem(
        index=0,
        num_experts=num_experts,
        top_k=TOP_K,
        num_groups=None,
        cluster=Cluster.fit(num_experts, num_nodes=2, gpus_per_node=2, redundant_experts=copies),
        options=options or Options(),
        sets_UK=sets_EK,
        count_U=np.ones(num_experts, dtype=np.int64),
        load_BE=np.full((2, num_experts), 1 / num_experts),
        coact_EE=coact_EE,
        seed=0,
    )


def _row(problem: LayerProblem) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return (np.arange(problem.cluster.num_slots) % problem.num_experts).astype(np.int32)


def compile_starts() -> None:
    Eplb().solve_layer(_layer())


def compile_single() -> None:
    problem = _layer()
    anneal_single(_row(problem), incidence(problem, EXPERTS), costs_of(problem, EXPERTS), 0.1, 0.01, MOVES, SEED)


def compile_copies(num_nodes: str) -> None:
    slots_per_node = -(-(EXPERTS + COPIES) // int(num_nodes))
    cluster = Cluster(num_nodes=int(num_nodes), gpus_per_node=1, slots_per_gpu=slots_per_node)
    problem = replace(_layer(copies=COPIES), cluster=cluster)
    anneal_copies(_row(problem), incidence(problem, EXPERTS), costs_of(problem, EXPERTS), 0.1, 0.01, MOVES, SEED)


def compile_chance() -> None:
    problem = _layer(copies=COPIES)
    inc, costs = incidence(problem, EXPERTS), costs_of(problem, EXPERTS)
    worlds = Worlds.of(HOME_FIRST, problem.cluster, costs.fare_HX.shape[1])
    anneal_chance(_row(problem), inc, costs, worlds, worlds.fare_HXW(costs.fare_HX), 1.0, 0.1, 0.01, MOVES, SEED)


def compile_cost() -> None:
    problem = _layer()
    problem.score(_row(problem))


def compile_wide_cost() -> None:
    problem = _layer(WIDE_EXPERTS)
    problem.score(_row(problem))


def compile_copies_cost(choice: str, num_nodes: str) -> None:
    nodes = int(num_nodes)
    cluster = Cluster.fit(EXPERTS, num_nodes=nodes, gpus_per_node=1, redundant_experts=COPIES)
    problem = replace(_layer(copies=COPIES, options=Options(replica_choice=choice)), cluster=cluster)
    problem.score(_row(problem))


def compile_bound() -> None:
    prove(_layer())


def compile_many_bound() -> None:
    problem = _layer()
    kind = SetMultipliers(problem.sets_UK, problem.count_U / EXPERTS, EXPERTS, 2, EXPERTS // 2, many=True)
    theta_UF = kind.first([0.5])
    kind.judge_and_ascend(AscentStep(0, 0.0, last=True), theta_UF, kind.rewards(theta_UF), 0.1, 0.1)


def compile_copies_bound() -> None:
    prove(_layer(copies=COPIES))


def compile_even_rows() -> None:
    problem = _layer()
    even_row(problem.load_BE, problem.cluster, power=1, moves=MOVES, seed=0)


SINGLE = CompilePiece(run=compile_single, kernels=(single_kernel,))
COPIES_BY_BOOKS = {
    books_class(nodes): CompilePiece(
        run=compile_copies, arguments=(str(nodes),), kernels=(copies_kernel,), types=books_class(nodes).__name__
    )
    for nodes in (8, 2, 9)  # a number of nodes for each kind of books
}
CHANCE = CompilePiece(run=compile_chance, kernels=(anneal_chance,))
STARTS = CompilePiece(run=compile_starts, kernels=(eplb_row, separate))
COST = CompilePiece(run=compile_cost, kernels=(cost_single,), types="uint8")
WIDE_COST = CompilePiece(run=compile_wide_cost, kernels=(cost_single,), types="uint16")
EVEN_ROWS = CompilePiece(run=compile_even_rows, kernels=(anneal_rows, pack))
BOUND = CompilePiece(run=compile_bound, kernels=(add_lines,))
MANY_BOUND = CompilePiece(run=compile_many_bound, kernels=(ascend_batches,))
COPIES_BOUND = CompilePiece(run=compile_copies_bound, kernels=(ascend_sets,))
