"""A proven lower bound on the objective of a layer, for every map."""

from __future__ import annotations

import numpy as np

from placement.cost.bounds import bound_steps, sends_bound, smallest_imbalance
from placement.cost.lagrangian_bound import lagrangian_bound
from placement.cost.spectral_bound import Pieces, spectral_bound
from placement.cost.transport import fare_HX
from placement.problem import LayerProblem, Options

CAP_TOLERANCE = 2e-9  # a map is still within a cap that it exceeds by less: see `LayerProblem.score`


def objective_bound(problem: LayerProblem, steps: int | None = None) -> float:
    """No map of the layer has a lower `LayerProblem.score(...).objective`; holds for every replica choice.

    Sends and balance pull against each other, so they are bounded together where the bound is spectral (one copy per
    expert); elsewhere the bounds of both are added. The tight bound is that of maps within the caps on imbalance, the
    quick one ignores them, which can only lower it.
    Where links differ every copy is taken at the lowest fare. Tight if `problem.options.bound` says so, else quick:
    then `steps` is the number of eigenvalue problems to solve (default: see `bound_steps`).
    """
    cluster = problem.cluster
    floor_B = np.array([smallest_imbalance(load_E, cluster) for load_E in problem.load_BE])
    apart = problem.balance_price * float(floor_B.mean()) * (1 - 1e-12)
    fares = fare_HX(cluster, problem.options.transport)
    if problem.send_price == 0 or problem.home_U is not None:
        return apart
    if problem.num_redundant:
        # whatever is sent, a copy goes to every remote node that is needed
        away = np.repeat(1.0 - np.eye(cluster.num_nodes), fares.shape[1] // cluster.num_nodes, axis=1) > 0
        if not away.any():
            return apart
        fewest = sends_bound(
            problem.sets_UK,
            problem.count_U,
            problem.num_experts,
            cluster.num_nodes,
            cluster.slots_per_node,
            tight=problem.options.bound == "tight",
            deadline=problem.deadline,
        )
        return apart + problem.send_price * float(fares[away].min()) * fewest
    cheapest = problem.send_price * float(fares.mean(axis=0).min())
    if problem.options.transport == "assignment":
        return apart + cheapest * problem.top_k * (1 - 1e-12)
    units = fares.shape[1]
    if units == 1 or cheapest == 0:
        return apart
    fastest = float(cluster.speed_G().reshape(units, -1).mean(axis=1).max())
    pieces = Pieces(
        sets_UK=problem.sets_UK,
        # the pieces take a touched unit for 1 - 1/X of a send
        weight_U=problem.count_U / problem.count_U.sum() * (cheapest * units / (units - 1)),
        load_BE=problem.load_BE,
        price_B=np.full(len(floor_B), problem.balance_price / len(floor_B)),
        floor_B=floor_B,
        num_nodes=units,
        slots_per_node=cluster.num_slots // units,
        fastest_node=fastest,
        most_node=_most_unit(problem.options, units, fastest, nodes=units == cluster.num_nodes),
    )
    if problem.options.bound == "tight":
        return max(lagrangian_bound(pieces, deadline=problem.deadline)[0], apart)
    return max(spectral_bound(pieces, steps or bound_steps(problem.num_experts)), apart)


def _most_unit(options: Options, num_units: int, fastest: float, *, nodes: bool) -> float:
    """The share of the load that the caps allow a unit: where every rank is within a cap, so is every node."""
    caps = (options.max_imbalance, options.max_node_imbalance if nodes else None)
    return min([1.0, *((cap + CAP_TOLERANCE) * fastest / num_units for cap in caps if cap is not None)])
