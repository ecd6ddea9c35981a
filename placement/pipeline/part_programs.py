"""Programs over maps of layers and parts of the traffic: the map of each layer by which the worst part costs least."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

Floats = npt.NDArray[np.float64]

MIP_NODES, MIP_GAP = 2_000, 1e-5


def least_worst(least_LCW: Sequence[Floats]) -> float:
    """What no choice of maps has a cheaper worst part than, in the mean over layers.

    Args:
        least_LCW: for each layer, costs on every part such that under any weights of parts one of them is below those
            of all maps.
    """
    weight_W, _ = relaxed(least_LCW)
    weights = [weight_W, *np.eye(len(weight_W))]  # under any weights the mean over parts is below the worst of them
    return max(float(np.mean([(cost_CW @ one_W).min() for cost_CW in least_LCW])) for one_W in weights)


def relaxed(cost_LCW: Sequence[Floats]) -> tuple[Floats, list[Floats]]:
    """The linear program's weights of parts (its dual values), and how much of each map it takes in every layer."""
    cost, matrix, equal, num_maps = _program(cost_LCW)
    result = linprog(
        cost,
        A_ub=matrix,
        b_ub=np.zeros(matrix.shape[0]),
        A_eq=equal,
        b_eq=np.ones(len(cost_LCW)),
        bounds=[(None, None), *[(0, 1)] * (len(cost) - 1)],
        method="highs-ds",
    )
    weight_W = np.maximum(-result.ineqlin.marginals, 0.0)
    weight_W = weight_W / weight_W.sum()
    return weight_W, np.split(np.asarray(result.x)[1:], np.cumsum(num_maps)[:-1])


def choose(cost_LCW: Sequence[Floats]) -> list[int]:
    """One map a layer such that the worst part is cheapest; never worse than taking the first everywhere."""
    cost, matrix, equal, num_maps = _program(cost_LCW)
    constraints = [LinearConstraint(matrix, -np.inf, 0.0), LinearConstraint(equal, 1.0, 1.0)]
    integrality = np.ones(len(cost), dtype=np.int64)
    integrality[0] = 0
    lower, upper = np.zeros(len(cost)), np.ones(len(cost))
    lower[0], upper[0] = -np.inf, np.inf
    result = milp(
        cost,
        constraints=constraints,
        integrality=integrality,
        bounds=Bounds(lower, upper),
        options={"node_limit": MIP_NODES, "mip_rel_gap": MIP_GAP},
    )
    first = [0] * len(cost_LCW)
    if result.x is None:
        return first
    chosen = [int(np.argmax(x)) for x in np.split(result.x[1:], np.cumsum(num_maps)[:-1])]
    return chosen if worst(cost_LCW, chosen) < worst(cost_LCW, first) else first


def worst(cost_LCW: Sequence[Floats], chosen: Sequence[int]) -> float:
    return float(np.sum([cost_CW[c] for cost_CW, c in zip(cost_LCW, chosen, strict=True)], axis=0).max())


def _program(cost_LCW: Sequence[Floats]) -> tuple[Floats, Floats, Floats, list[int]]:
    """Variables: z, the worst part's mean over layers, then a share of every map; sum of shares 1 in each layer."""
    num_maps = [len(cost_CW) for cost_CW in cost_LCW]
    mean_VW = np.concatenate(list(cost_LCW)) / len(cost_LCW)
    matrix = np.concatenate([-np.ones((mean_VW.shape[1], 1)), mean_VW.T], axis=1)
    layer_V = np.repeat(np.arange(len(num_maps)), num_maps)
    equal = np.zeros((len(num_maps), len(matrix[0])))
    equal[layer_V, 1 + np.arange(len(layer_V))] = 1.0
    cost = np.zeros(len(matrix[0]))
    cost[0] = 1.0
    return cost, matrix, equal, num_maps
