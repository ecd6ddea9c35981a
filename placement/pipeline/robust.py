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
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.pipeline.layer_answer import LayerReport
from placement.pipeline.part_programs import choose, least_worst, relaxed
from placement.pipeline.run import Run
from placement.pipeline.solve_layers import Deadlines, end_of
from placement.pipeline.source import Side
from placement.solvers import get_solver
from placement.solvers.balancing.part_maps import maps_for_parts
from placement.solvers.layer_problems import layer_problem
from placement.solvers.mixtures import Mixtures
from placement.solvers.options import Options
from placement.solvers.problem import LayerProblem
from placement.solvers.prove import objective_bound
from placement.support.parallel import run_tasks, width
from placement.support.progress import Progress, ignore
from placement.traces.parts import Parts
from placement.workload.mixed import MixedWorkload
from placement.workload.workload import SAMPLE_TOKENS, Workload

log = logging.getLogger("placement")

Row = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float64]

ROUNDS = 8
ROUND_MOVES, WORK_SHARE = 40_000, 0.1  # moves of a layer in a round, and their share of the work limit
SMOOTHING = 0.7  # weights jump between parts; their mean with earlier weights converges faster
PARTS_TOKENS, FEWEST_PART_TOKENS = SAMPLE_TOKENS, 1_024  # sampled tokens of all parts, fewest of one part


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustAnswer:
    """The robust map, how it does on all training requests, and what every map costs on each part.

    cost_W  name -> float64 [W], mean over layers of the training objective of each part
    bound   no map has a lower worst part; None where no bound was asked for
    """

    placement: Placement
    layers: tuple[LayerReport, ...]
    cost_W: dict[str, Floats]
    bound: float | None


def solve_robust(
    run: Run,
    train: Side,
    split: Parts,
    whole: Workload | MixedWorkload,
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
        run.count_all(view, options.seed, listener=ignore, sample_tokens=sample_tokens)
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
        run_tasks(_add_for_parts, layers, executor)
        cost_W = {
            other: np.mean([layer.costs(plain[other].phy2log_LP[layer.index]) for layer in layers], axis=0)
            for other in names
        }
        weight_W = np.full(len(parts), 1 / len(parts))
        for number in range(ROUNDS):
            listener(Progress(stage="robust", done=number, total=ROUNDS))
            left_s = None if end is None else max(end - time.monotonic(), 0.0) / (ROUNDS - number)
            deadlines = Deadlines(left_s, num_layers, width(executor))
            dual_W, share_LC = relaxed([layer.cost_CW() for layer in layers])
            weight_W = SMOOTHING * weight_W + (1 - SMOOTHING) * dual_W
            starts = [int(np.argmax(share_C)) for share_C in share_LC]
            run_tasks(partial(_improve, weight_W, starts, number, deadlines), layers, executor)
        listener(Progress(stage="robust", done=ROUNDS, total=ROUNDS))
        chosen = choose([layer.cost_CW() for layer in layers])
        bound = None
        if options.bound != "none":
            run_tasks(_bound, layers, executor)
            bound = least_worst([layer.least_CW for layer in layers])
    cost_W[name] = np.mean([layer.cost[c] for layer, c in zip(layers, chosen, strict=True)], axis=0)
    log.info("worst part: %.6f, of %s %.6f", cost_W[name].max(), options.solver, cost_W[options.solver].max())
    rows = [layer.rows[c] for layer, c in zip(layers, chosen, strict=True)]
    return RobustAnswer(
        placement=replace(plain[options.solver], phy2log_LP=np.stack(rows)),
        layers=tuple(layer.report(c, report) for layer, c, report in zip(layers, chosen, reports, strict=True)),
        cost_W=cost_W,
        bound=bound,
    )


class _Layer:
    """The maps of one layer that were found so far, the plain one first, and what each costs on every part.

    complete  whatever the weights of parts, no other map has a lower mean
    least_CW  costs such that under any weights one of them is below those of all maps
    """

    def __init__(
        self,
        whole: Workload | MixedWorkload,
        parts: Sequence[Workload | MixedWorkload],
        cluster: Cluster,
        options: Options,
        layer: int,
    ) -> None:
        self.index = layer
        self.mixtures = Mixtures(
            layer_problem(whole, cluster, options, layer),
            [layer_problem(part, cluster, options, layer) for part in parts],
        )
        self.rows: list[Row] = []
        self.cost: list[Floats] = []
        self.complete = False
        self.least_CW = np.zeros((1, len(parts)))

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


def _add_for_parts(layer: _Layer) -> None:
    """Where balance alone counts: a map for all parts, or of few experts all that may be best."""
    if layer.mixtures.whole.send_price == 0:
        rows, layer.complete = maps_for_parts(layer.mixtures.parts)
        for row in rows:
            layer.add(row)


def _bound(layer: _Layer) -> None:
    parts = layer.mixtures.parts
    layer.least_CW = layer.cost_CW() if layer.complete else np.array([[objective_bound(part) for part in parts]])


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
