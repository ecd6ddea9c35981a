"""The placement whose worst part costs least: traffic may shift to any of the parts.

Column generation. The cost of part w is the mean over layers of the layer's objective under w's sets and loads. Given
some maps of every layer, a linear program chooses a mixture of them in each layer that makes the worst part cheapest;
its dual values are the weights of parts under which the current maps look best. Solving every layer on that mixture of
parts (`placement.solvers.mixtures`) either finds maps that improve it or shows that little is left. In the end an
integer program takes one map a layer. The maps of the plain solution are there from the start, so on the training
requests no part is ever worse off than the worst part of the plain solution.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from threadpoolctl import threadpool_limits

from placement.cluster import Cluster
from placement.events import Listener, Progress, ignore
from placement.parallel import run_tasks, usable_cores
from placement.placement_map import Placement
from placement.problem import LayerProblem, Options
from placement.solvers import get_solver
from placement.solvers.anneal import MOVES, REPLICA_MOVES
from placement.solvers.layer_problems import layer_problem
from placement.solvers.mixtures import Mixtures
from placement.solvers.run import Deadlines, LayerReport, layer_report
from placement.workload import Workload

log = logging.getLogger("placement")

Row = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

ROUNDS = 10
WORK_SHARE = 0.1  # of a plain solve, in each round
SMOOTHING = 0.7  # weights jump from one part to another; the mean with those before converges faster
MIP_NODES, MIP_GAP = 2_000, 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustAnswer:
    """The robust map, how it does on all training requests, and what every map costs on each part.

    cost_W  name -> float64 [W], mean over layers of the training objective of each part
    """

    placement: Placement
    layers: tuple[LayerReport, ...]
    cost_W: dict[str, Floats]


def solve_robust(
    whole: Workload,
    parts: Sequence[Workload],
    cluster: Cluster,
    options: Options,
    *,
    plain: Mapping[str, Placement],
    reports: Sequence[LayerReport],
    name: str,
    executor: Executor,
    workers: int | None = None,
    listener: Listener = ignore,
) -> RobustAnswer:
    """Minimize the cost of the worst of `parts`.

    plain  maps to start from; that of `options.solver` keeps the caps, of the others what breaks them is left out
    reports  how the layers of that map were solved: their bounds hold for any map
    name   of the robust map in the answer
    """
    num_layers = whole.model.num_layers
    deadlines = Deadlines(options.time_limit_s, num_layers * ROUNDS, workers or usable_cores())
    layers = [_Layer(whole, parts, cluster, options, layer) for layer in range(num_layers)]
    with threadpool_limits(1, user_api="blas"):
        names = [options.solver, *(other for other in plain if other != options.solver)]
        cost_MWL = np.array([[layer.costs(plain[m].phy2log_LP[i]) for i, layer in enumerate(layers)] for m in names])
        for first, other in enumerate(names):
            for layer in layers:
                layer.add(plain[other].phy2log_LP[layer.index], required=first == 0)
        weight_W = np.full(len(parts), 1 / len(parts))
        for number in range(ROUNDS):
            listener(Progress(stage="robust", done=number, total=ROUNDS))
            dual_W, fractions = _relaxed([layer.cost_CW() for layer in layers])
            weight_W = SMOOTHING * weight_W + (1 - SMOOTHING) * dual_W
            used = [int(np.argmax(x)) for x in fractions]
            found = run_tasks(partial(_solve, layers, weight_W, used, number, deadlines), range(num_layers), executor)
            for layer, row in zip(layers, found, strict=True):
                layer.add(row)
        listener(Progress(stage="robust", done=ROUNDS, total=ROUNDS))
        chosen = _choose([layer.cost_CW() for layer in layers])
    placement = replace(
        plain[options.solver], phy2log_LP=np.stack([layer.rows[c] for layer, c in zip(layers, chosen, strict=True)])
    )
    cost_W = {other: cost_MWL[m].mean(axis=0) for m, other in enumerate(names)}
    cost_W[name] = np.mean([layer.cost[c] for layer, c in zip(layers, chosen, strict=True)], axis=0)
    log.info("robust: worst part %.6f, plain %.6f", cost_W[name].max(), cost_W[options.solver].max())
    told = tuple(layer.report(c, report) for layer, c, report in zip(layers, chosen, reports, strict=True))
    return RobustAnswer(placement=placement, layers=told, cost_W=cost_W)


def _solve(
    layers: Sequence[_Layer], weight_W: Floats, used: Sequence[int], number: int, deadlines: Deadlines, i: int
) -> Row:
    return layers[i].solve(weight_W, used[i], number, deadlines.next())


class _Layer:
    """The maps of one layer that were found so far, and what each costs on every part."""

    def __init__(
        self, whole: Workload, parts: Sequence[Workload], cluster: Cluster, options: Options, layer: int
    ) -> None:
        self.index = layer
        problems = [layer_problem(part, cluster, options, layer) for part in parts]
        self.mixtures = Mixtures(layer_problem(whole, cluster, options, layer), problems)
        self.rows: list[Row] = []
        self.cost: list[Floats] = []

    def costs(self, row: Row) -> Floats:
        return np.array([part.score(row).objective for part in self.mixtures.parts])

    def cost_CW(self) -> Floats:
        return np.stack(self.cost)

    def add(self, row: Row, *, required: bool = False) -> None:
        """Keep a map unless it is known or breaks a cap on the imbalance of the training loads."""
        known = any(np.array_equal(row, other) for other in self.rows)
        if not known and (required or self.mixtures.whole.score(row).feasible):
            self.rows.append(row)
            self.cost.append(self.costs(row))

    def report(self, chosen: int, plain: LayerReport) -> LayerReport:
        """The plain map is the first; its bound is one on the objective of all maps."""
        if chosen == 0:
            return plain
        score = self.mixtures.whole.score(self.rows[chosen])
        status = "limit" if plain.status == "limit" else "feasible"
        return layer_report(plain.layer_id, score, solver="robust", status=status, bound=plain.bound)

    def solve(self, weight_W: Floats, start: int, number: int, deadline: float | None) -> Row:
        """A map for the mixture, from the one that the linear program uses most."""
        whole = self.mixtures.whole
        options = replace(whole.options, bound="none", work_limit=_work(whole))
        seed = int(np.random.SeedSequence([options.seed, self.index, number]).generate_state(1, np.uint64)[0])
        mixture = self.mixtures.problem(weight_W, seed)
        mixture = replace(mixture, options=options, starts=(self.rows[start],), deadline=deadline)
        return get_solver(options.solver).solve_layer(mixture).phy2log_P


def _work(problem: LayerProblem) -> int:
    moves = problem.options.work_limit
    if moves is None:
        moves = MOVES
        if problem.num_redundant:
            moves = int(REPLICA_MOVES * (problem.num_experts / problem.cluster.num_slots) ** 3)
    return max(int(WORK_SHARE * moves), 1)


def _relaxed(cost_LCW: Sequence[Floats]) -> tuple[Floats, list[Floats]]:
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


def _choose(cost_LCW: Sequence[Floats]) -> list[int]:
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
    return chosen if _worst(cost_LCW, chosen) < _worst(cost_LCW, first) else first


def _worst(cost_LCW: Sequence[Floats], chosen: Sequence[int]) -> float:
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
