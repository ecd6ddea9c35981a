"""A proven lower bound on the objective of a layer, for every map."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.bounds.lagrangian_bound import lagrangian_bound, relaxed_map
from placement.bounds.layer_bound import QUICK_ITERATIONS, sends_bound, smallest_imbalance
from placement.bounds.spectral_bound import QUICK_EXPERTS, Pieces, bound_steps, spectral_bound
from placement.cost.transport import fare_HX
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.solvers.spectral import grouped_map

CAP_TOLERANCE = 2e-9  # a map is still within a cap that it exceeds by less: see `LayerProblem.score`


def objective_bound(problem: LayerProblem, steps: int | None = None) -> float:
    """What no map of the layer is below in `LayerProblem.score(...).objective`, under any replica choice.

    Sends and balance pull against each other, so they are bounded together where the bound is spectral (one copy per
    expert); elsewhere the bounds of both are added. The tight bound is that of maps within the caps on imbalance, the
    quick one ignores them, which can only lower it.
    Where homes are given both bounds are Lagrangian, of more or fewer steps, and a copy to a rank counts as one to its
    node. Where links differ every copy is taken at the lowest fare.

    Args:
        problem: the layer; its options say whether the bound is tight or quick.
        steps: eigenvalue problems that a quick bound solves; None: see `bound_steps`.
    """
    return prove(problem, steps)[0]


def prove(problem: LayerProblem, steps: int | None = None) -> tuple[float, npt.NDArray[np.int32] | None]:
    """`objective_bound`, and a map to start a search from where the tight bound leads to one: its relaxed same-node
    matrix, rounded. With given homes there is none, as the matrix does not say which node is whose."""
    problem = problem.balanced()
    cluster, options = problem.cluster, problem.options
    floor_B = np.array([smallest_imbalance(load_E, cluster) for load_E in problem.load_BE])
    apart = problem.balance_price * float(floor_B.mean()) * (1 - 1e-12)
    fares = fare_HX(cluster, options.transport)
    if problem.send_price == 0 or not problem.assignments:
        return apart, None
    if problem.num_redundant or problem.home_U is not None:
        if cluster.num_nodes == 1:
            return apart, None
        # whatever is sent, a copy goes to every remote node that is needed
        away = np.repeat(1.0 - np.eye(cluster.num_nodes), fares.shape[1] // cluster.num_nodes, axis=1) > 0
        cheapest = problem.send_price * float(fares[away].min())
        fewest = sends_bound(
            problem.sets_UK,
            problem.count_U,
            problem.num_experts,
            cluster.num_nodes,
            cluster.slots_per_node,
            home_U=problem.home_U,
            tight=options.bound == "tight",
            deadline=problem.deadline,
        )
        if problem.num_redundant:
            return apart + cheapest * fewest, None
        if not problem.transport.distinct:
            least = max(cheapest * fewest, problem.send_price * _fewest_assignments(problem, fares))
            return apart + least, None
        pieces = _pieces(problem, floor_B, cluster.num_nodes, cheapest)
        iterations = None if options.bound == "tight" else steps or bound_steps(problem.num_experts)
        found, _ = lagrangian_bound(pieces, iterations=iterations, deadline=problem.deadline)
        return max(found, apart + cheapest * fewest), None
    cheapest = problem.send_price * float(fares.mean(axis=0).min())
    if not problem.transport.distinct:
        return apart + cheapest * problem.assignments * (1 - 1e-12), None
    units = fares.shape[1]
    if units == 1 or cheapest == 0:
        return apart, None
    # the pieces take a touched unit for 1 - 1/X of a send
    pieces = _pieces(problem, floor_B, units, cheapest * units / (units - 1))
    if options.bound == "tight":
        found, at = lagrangian_bound(pieces, deadline=problem.deadline)
        by_node = units == cluster.num_nodes
        start = grouped_map(relaxed_map(pieces, at), problem.load_E, cluster) if by_node else None
        return max(found, apart), start
    if problem.num_experts > QUICK_EXPERTS:
        found, _ = lagrangian_bound(pieces, iterations=QUICK_ITERATIONS, deadline=problem.deadline)
        return max(found, apart), None
    return max(spectral_bound(pieces, steps or bound_steps(problem.num_experts)), apart), None


def _pieces(problem: LayerProblem, floor_B: npt.NDArray[np.float64], units: int, price: float) -> Pieces:
    """`price` of a send to one of so many units, nodes or ranks."""
    cluster = problem.cluster
    fastest = float(cluster.speed_G().reshape(units, -1).mean(axis=1).max())
    return Pieces(
        sets_UK=problem.sets_UK,
        weight_U=problem.count_U / problem.count_U.sum() * price,
        load_BE=problem.load_BE,
        price_B=np.full(len(floor_B), problem.balance_price / len(floor_B)),
        floor_B=floor_B,
        num_nodes=units,
        slots_per_node=cluster.num_slots // units,
        fastest_node=fastest,
        most_node=_most_unit(problem.options, units, fastest, nodes=units == cluster.num_nodes),
        home_U=problem.home_U,
    )


def _fewest_assignments(problem: LayerProblem, fares: npt.NDArray[np.float64]) -> float:
    """What it costs per token at least to send every assignment to the rank of its expert, wherever that is."""
    from scipy.optimize import linear_sum_assignment  # slow to load

    cluster, experts = problem.cluster, problem.num_experts
    home_U = np.full(len(problem.sets_UK), -1) if problem.home_U is None else problem.home_U
    share_U = problem.count_U / problem.count_U.sum()
    cost_EG = np.zeros((experts, cluster.num_ranks))
    for home in range(-1, cluster.num_nodes):
        weights = np.repeat(share_U * (home_U == home), problem.top_k)
        visits_E = np.bincount(problem.sets_UK.ravel() + 1, weights=weights, minlength=experts + 1)[1:]
        cost_EG += np.outer(visits_E, fares.mean(axis=0) if home < 0 else fares[home])
    cost_EP = np.repeat(cost_EG, cluster.slots_per_gpu, axis=1)
    return float(cost_EP[linear_sum_assignment(cost_EP)].sum() * (1 - 1e-12))


def _most_unit(options: Options, num_units: int, fastest: float, *, nodes: bool) -> float:
    """The share of the load that the caps allow a unit: where every rank is within a cap, so is every node."""
    caps = (options.max_imbalance, options.max_node_imbalance if nodes else None)
    return min([1.0, *((cap + CAP_TOLERANCE) * fastest / num_units for cap in caps if cap is not None)])
