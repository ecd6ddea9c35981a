"""Two experts a node, one copy each: the fewest sends are a matching of the highest weight, for any top-k.

A token touches as many nodes as its set has experts, less one for every pair of them that shares a node. So the sends
of a map are those of separate experts less the weight of its pairs, where a pair weighs the tokens that visit both:
what `networkx` finds with Edmonds' blossom algorithm, in whole numbers. On nodes of two GPUs that are all alike the
balance is that of single experts, the same for every map, and the matching is the optimum of the whole objective. Where
both experts share a GPU balance pulls the other way; then pairs above a limit on their load are left out, for several
limits, and the best map of all is kept. The bound adds up the fewest sends and the least imbalance.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import numpy.typing as npt

from placement.bounds.layer_bound import smallest_imbalance
from placement.cost.transport import is_plain
from placement.solvers.balancing.balance_solver import Balance
from placement.solvers.base import HOMES_KNOWN, PROVEN, no_map_found
from placement.solvers.problem import LayerProblem, LayerSolution, Score

LIMITS = 6  # limits on the load of a pair that are tried


class Matching:
    name = "matching"

    def unsupported(self, problem: LayerProblem) -> str | None:
        cluster = problem.cluster
        if problem.num_redundant or cluster.slots_per_node != 2:
            return "it pairs experts: every node must hold two of them, one copy each"
        if problem.home_U is not None:
            return HOMES_KNOWN
        if problem.send_price and not is_plain(cluster, problem.options.transport):
            return "it counts sends between nodes: transport node, links all alike"
        return None

    def solve_layer(self, problem: LayerProblem) -> LayerSolution:
        """The best of several matchings, with a bound.

        Raises:
            LimitError: no map within the caps was found.
        """
        together_EE = _together(problem)
        pair_EE = problem.load_E[:, None] + problem.load_E
        first, second = np.triu_indices(problem.num_experts, 1)
        fewest = _pairs(together_EE, np.ones_like(together_EE, dtype=bool))
        assert fewest is not None  # every expert may pair with every other
        best = Balance().solve_layer(problem).phy2log_P
        score = problem.score(best)
        shares = np.linspace(1, 0.3, LIMITS if _balance_differs(problem) else 0)
        limits = np.quantile(pair_EE[first, second], shares)
        for row in (fewest, *(None if problem.out_of_time() else _pairs(together_EE, pair_EE <= x) for x in limits)):
            if row is not None and problem.score(row).better_than(score):
                best, score = row, problem.score(row)
        if not score.feasible:
            raise no_map_found(problem, score, "raise it")
        bound = min(_bound(problem, problem.score(fewest)), score.objective)
        proven = score.objective - bound <= PROVEN
        return LayerSolution(solver=self.name, phy2log_P=best, status="optimal" if proven else "feasible", bound=bound)


def _balance_differs(problem: LayerProblem) -> bool:
    """Whether maps can differ in balance: not where every GPU holds one expert and all are alike."""
    return problem.cluster.slots_per_gpu > 1 or bool(np.ptp(problem.cluster.speed_G()) > 0)


def _bound(problem: LayerProblem, fewest: Score) -> float:
    """`fewest`: the score of a map of the fewest sends."""
    floor = fewest.expected_imbalance
    if _balance_differs(problem):
        floor = float(np.mean([smallest_imbalance(load_E, problem.cluster) for load_E in problem.load_BE]))
    return (problem.send_price * fewest.sends + problem.balance_price * floor) * (1 - 1e-11)


def _together(problem: LayerProblem) -> npt.NDArray[np.int64]:
    """Sampled tokens that visit both of two experts, int64 [E, E]."""
    together_EE = np.zeros((problem.num_experts + 1, problem.num_experts + 1), dtype=np.int64)
    first, second = np.triu_indices(problem.top_k, 1)
    pairs = (problem.sets_UK[:, first].ravel(), problem.sets_UK[:, second].ravel())
    np.add.at(together_EE, pairs, np.repeat(problem.count_U, len(first)))
    half_EE = together_EE[:-1, :-1]  # the places that short sets lack are row and column -1
    return np.asarray(half_EE + half_EE.T)


def _pairs(together_EE: npt.NDArray[np.int64], allowed_EE: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32] | None:
    """The heaviest perfect matching as a map, int32 [E], or None if the allowed pairs have no perfect one."""
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(len(together_EE)))
    graph.add_weighted_edges_from(
        (a, b, int(together_EE[a, b])) for a in range(len(together_EE)) for b in range(a) if allowed_EE[a, b]
    )
    matching = sorted(tuple(sorted(pair)) for pair in nx.max_weight_matching(graph, maxcardinality=True))
    if 2 * len(matching) < len(together_EE):
        return None
    return np.array(matching, dtype=np.int32).ravel()
