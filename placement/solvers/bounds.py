"""A proven lower bound on the objective of a layer, for every map."""

from __future__ import annotations

import numpy as np

from placement.cost.bounds import bound_steps, sends_bound, smallest_imbalance
from placement.cost.lagrangian_bound import lagrangian_bound
from placement.cost.spectral_bound import Pieces, spectral_bound
from placement.cost.transport import fare_HX
from placement.problem import LayerProblem


def objective_bound(problem: LayerProblem, steps: int | None = None) -> float:
    """No map of the layer has a lower `LayerProblem.score(...).objective`; holds for every replica choice.

    Sends and balance pull against each other, so they are bounded together where the bound is spectral (one copy per
    expert); elsewhere the bounds of both are added. It ignores the caps on imbalance, which can only raise the optimum.
    Where links differ every copy is taken at the lowest fare. Tight if `problem.options.bound` says so, else quick:
    then `steps` is the number of eigenvalue problems to solve (default: see `bound_steps`).
    """
    cluster = problem.cluster
    floor_B = np.array([smallest_imbalance(load_E, cluster) for load_E in problem.load_BE])
    apart = problem.balance_price * float(floor_B.mean()) * (1 - 1e-12)
    fares = fare_HX(cluster, problem.options.transport)
    if problem.send_price == 0:
        return apart
    if problem.num_redundant:
        # whatever is sent, a copy goes to every remote node that is needed
        away = np.repeat(1.0 - np.eye(cluster.num_nodes), fares.shape[1] // cluster.num_nodes, axis=1) > 0
        if not away.any():
            return apart
        fewest = sends_bound(
            problem.sets_UK, problem.count_U, problem.num_experts, cluster.num_nodes, cluster.slots_per_node
        )
        return apart + problem.send_price * float(fares[away].min()) * fewest
    cheapest = problem.send_price * float(fares.mean(axis=0).min())
    if problem.options.transport == "assignment":
        return apart + cheapest * problem.top_k * (1 - 1e-12)
    units = fares.shape[1]
    if units == 1 or cheapest == 0:
        return apart
    speed_X = cluster.speed_G().reshape(units, -1).mean(axis=1)
    pieces = Pieces(
        sets_UK=problem.sets_UK,
        # the pieces take a touched unit for 1 - 1/X of a send
        weight_U=problem.count_U / problem.count_U.sum() * (cheapest * units / (units - 1)),
        load_BE=problem.load_BE,
        price_B=np.full(len(floor_B), problem.balance_price / len(floor_B)),
        floor_B=floor_B,
        num_nodes=units,
        slots_per_node=cluster.num_slots // units,
        fastest_node=float(speed_X.max()),
    )
    if problem.options.bound == "tight":
        return max(lagrangian_bound(pieces, deadline=problem.deadline)[0], apart)
    return max(spectral_bound(pieces, steps or bound_steps(problem.num_experts)), apart)
