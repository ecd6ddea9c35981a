"""The placement whose worst part costs least: traffic may shift to any of the parts.

Column generation. The cost of part w is the mean over layers of the layer's objective under w's sets and loads. Given
some maps of every layer, a linear program chooses a mixture of them in each layer that makes the worst part cheapest;
its dual values are the weights of parts under which the current maps look best. Solving every layer on that mixture of
parts (`placement.pipeline.mixtures`) either finds maps that improve it or shows that little is left. In the end an
integer program takes one map a layer. The maps of the plain solution are there from the start, so on the training
requests no part is ever worse off than the worst part of the plain solution.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from scipy.optimize import Bounds, LinearConstraint, linprog, milp
from threadpoolctl import threadpool_limits

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.pipeline.layer_answer import LayerReport
from placement.pipeline.mixtures import Mixtures
from placement.pipeline.run import Run
from placement.pipeline.solve_layers import Deadlines, end_of
from placement.pipeline.source import Side
from placement.solvers import get_solver
from placement.solvers.layer_problems import layer_problem
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.support.parallel import run_tasks, width
from placement.support.progress import Progress, ignore
from placement.traces.parts import Parts
from placement.workload.workload import SAMPLE_TOKENS, Workload

log = logging.getLogger("placement")

Row = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

ROUNDS = 8
ROUND_MOVES, WORK_SHARE = 40_000, 0.1  # moves of a layer in a round, and their share of the work limit
SMOOTHING = 0.7  # weights jump between parts; their mean with earlier weights converges faster
MIP_NODES, MIP_GAP = 2_000, 1e-5
PARTS_TOKENS, FEWEST_PART_TOKENS = SAMPLE_TOKENS, 1_024  # sampled tokens of all parts, fewest of one part


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustAnswer:
    """The robust map, how it does on all training requests, and what every map costs on each part.

    cost_W  name -> float64 [W], mean over layers of the training objective of each part
    """

    placement: Placement
    layers: tuple[LayerReport, ...]
    cost_W: dict[str, Floats]


def solve_robust(
    run: Run,
    train: Side,
    split: Parts,
    whole: Workload,
    cluster: Cluster,
    options: Options,
    *,
    plain: Mapping[str, Placement],
    reports: Sequence[LayerReport],
    name: str,
) -> RobustAnswer:
    """Minimize the cost of the worst part of the training requests.

    Args:
        run: Where the steps run.
        train: The training requests, of which `whole` is the count and `split` names the parts.
        plain: Maps to start from. The map of `options.solver` keeps the caps; of the others, layers that break a cap
            are left out.
        reports: How the layers of the map of `options.solver` were solved. Their bounds hold for any map.
        name: Of the robust map in the answer.
    """
    sample_tokens = max(PARTS_TOKENS // len(split.names), FEWEST_PART_TOKENS)
    views = [train.of(split, part) for part in range(len(split.names))]
    parts = [
        run.count(view, options.seed, listener=ignore, sample_tokens=sample_tokens)
        for view in views
        if view is not None
    ]
    executor, listener = run.threads, run.listener
    num_layers = whole.model.num_layers
    end = None if options.time_limit_s is None else time.monotonic() + options.time_limit_s
    names = [options.solver, *(other for other in plain if other != options.solver)]
    with threadpool_limits(1, user_api="blas"):
        layers = run_tasks(partial(_Layer, whole, parts, cluster, options), range(num_layers), executor)
        for other in names:
            run_tasks(partial(_add_from, plain[other]), layers, executor)
        cost_W = {
            other: np.mean([layer.costs(plain[other].phy2log_LP[layer.index]) for layer in layers], axis=0)
            for other in names
        }
        weight_W = np.full(len(parts), 1 / len(parts))
        for number in range(ROUNDS):
            listener(Progress(stage="robust", done=number, total=ROUNDS))
            left_s = None if end is None else max(end - time.monotonic(), 0.0) / (ROUNDS - number)
            deadlines = Deadlines(left_s, num_layers, width(executor))
            dual_W, share_LC = _relaxed([layer.cost_CW() for layer in layers])
            weight_W = SMOOTHING * weight_W + (1 - SMOOTHING) * dual_W
            starts = [int(np.argmax(share_C)) for share_C in share_LC]
            run_tasks(partial(_improve, weight_W, starts, number, deadlines), layers, executor)
        listener(Progress(stage="robust", done=ROUNDS, total=ROUNDS))
        chosen = _choose([layer.cost_CW() for layer in layers])
    cost_W[name] = np.mean([layer.cost[c] for layer, c in zip(layers, chosen, strict=True)], axis=0)
    log.info("worst part: %.6f, of %s %.6f", cost_W[name].max(), options.solver, cost_W[options.solver].max())
    rows = [layer.rows[c] for layer, c in zip(layers, chosen, strict=True)]
    return RobustAnswer(
        placement=replace(plain[options.solver], phy2log_LP=np.stack(rows)),
        layers=tuple(layer.report(c, report) for layer, c, report in zip(layers, chosen, reports, strict=True)),
        cost_W=cost_W,
    )


class _Layer:
    """The maps of one layer that were found so far, the plain one first, and what each costs on every part."""

    def __init__(
        self, whole: Workload, parts: Sequence[Workload], cluster: Cluster, options: Options, layer: int
    ) -> None:
        self.index = layer
        self.mixtures = Mixtures(
            layer_problem(whole, cluster, options, layer),
            [layer_problem(part, cluster, options, layer) for part in parts],
        )
        self.rows: list[Row] = []
        self.cost: list[Floats] = []

    def costs(self, row: Row) -> Floats:
        """The layer's objective on every part, [W]."""
        return np.array([part.score(row).objective for part in self.mixtures.parts])

    def cost_CW(self) -> Floats:
        return np.stack(self.cost)

    def add(self, row: Row) -> None:
        """Keep a map unless it is known or breaks a cap on the imbalance of the training loads (the first keeps it)."""
        known = any(np.array_equal(row, other) for other in self.rows)
        if not known and (not self.rows or self.mixtures.whole.score(row).feasible):
            self.rows.append(row)
            self.cost.append(self.costs(row))

    def report(self, chosen: int, plain: LayerReport) -> LayerReport:
        """How the chosen map does on all training requests; the plain map's bound holds for every map."""
        if chosen == 0:
            return plain
        objective = round(self.mixtures.whole.score(self.rows[chosen]).objective, 9)
        gap = None
        if plain.bound is not None:
            gap = round(max(objective - plain.bound, 0.0) / objective, 6) if objective else 0.0
        status = "limit" if plain.status == "limit" else "feasible"
        return replace(plain, solver="robust", status=status, objective=objective, gap=gap)


def _add_from(placement: Placement, layer: _Layer) -> None:
    layer.add(placement.phy2log_LP[layer.index])


def _improve(weight_W: Floats, starts: Sequence[int], number: int, deadlines: Deadlines, layer: _Layer) -> None:
    """Add a map for the mixture of parts, searched from the one that the linear program takes most of."""
    options = layer.mixtures.whole.options
    seed = int(np.random.SeedSequence([options.seed, layer.index, number]).generate_state(1, np.uint64)[0])
    mixture = replace(
        layer.mixtures.problem(weight_W, seed),
        starts=(layer.rows[starts[layer.index]],),
        deadline=end_of(deadlines.next_s()),
    )
    options = replace(options, bound="none", work_limit=_work(mixture))
    # a choice that goes through tokens one by one cannot weigh the mixture's
    options = replace(options, replica_choice=mixture.choice.without_order or options.replica_choice)
    layer.add(get_solver(options.solver).solve_layer(replace(mixture, options=options)).phy2log_P)


def _work(problem: LayerProblem) -> int:
    """Moves of one round; the more copies there are, the dearer a move is."""
    if problem.options.work_limit is not None:
        return max(int(WORK_SHARE * problem.options.work_limit), 1)
    return int(ROUND_MOVES * (problem.num_experts / problem.cluster.num_slots) ** 3)


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
