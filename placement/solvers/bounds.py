"""A proven lower bound on the objective of a layer, for every map."""

from __future__ import annotations

import numpy as np

from placement.cost.bounds import bound_steps, sends_bound, smallest_imbalance
from placement.cost.lagrangian_bound import lagrangian_bound
from placement.cost.spectral_bound import Pieces, spectral_bound
from placement.problem import LayerProblem, Options

CAP_TOLERANCE = 2e-9  # a map is still within a cap that it exceeds by less: see `LayerProblem.score`


def objective_bound(problem: LayerProblem, steps: int | None = None) -> float:
    """No map of the layer has a lower `LayerProblem.score(...).objective`; holds for every replica choice.

    Sends and balance pull against each other, so they are bounded together where the bound is spectral (one copy per
    expert); elsewhere the bounds of both are added. The tight bound is that of maps within the caps on imbalance, the
    quick one ignores them, which can only lower it.
    Tight if `problem.options.bound` says so, else quick: then `steps` is the number of eigenvalue problems to solve
    (default: see `bound_steps`).
    """
    cluster = problem.cluster
    weight = problem.options.balance_weight
    floor_B = np.array([smallest_imbalance(load_E, cluster) for load_E in problem.load_BE])
    apart = weight * float(floor_B.mean()) * (1 - 1e-12)
    if cluster.num_nodes == 1:
        return apart
    if problem.num_redundant:
        return apart + sends_bound(
            problem.sets_UK,
            problem.count_U,
            problem.num_experts,
            cluster.num_nodes,
            cluster.slots_per_node,
            tight=problem.options.bound == "tight",
            deadline=problem.deadline,
        )
    fastest = float(cluster.speed_G().reshape(cluster.num_nodes, -1).mean(axis=1).max())
    pieces = Pieces(
        sets_UK=problem.sets_UK,
        weight_U=problem.count_U / problem.count_U.sum(),
        load_BE=problem.load_BE,
        price_B=np.full(len(floor_B), weight / len(floor_B)),
        floor_B=floor_B,
        num_nodes=cluster.num_nodes,
        slots_per_node=cluster.slots_per_node,
        fastest_node=fastest,
        most_node=_most_node(problem.options, cluster.num_nodes, fastest),
    )
    if problem.options.bound == "tight":
        return max(lagrangian_bound(pieces, deadline=problem.deadline)[0], apart)
    return max(spectral_bound(pieces, steps or bound_steps(problem.num_experts)), apart)


def _most_node(options: Options, num_nodes: int, fastest_node: float) -> float:
    """The share of the load that the caps allow a node: where every rank is within a cap, so is every node."""
    caps = [cap for cap in (options.max_imbalance, getattr(options, "max_node_imbalance", None)) if cap is not None]
    return min([1.0, *((cap + CAP_TOLERANCE) * fastest_node / num_nodes for cap in caps)])
