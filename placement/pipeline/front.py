"""Solves at every price of imbalance."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np

from placement.core.cluster import Cluster
from placement.cost.evaluation import Evaluation
from placement.errors import OptionError
from placement.pipeline.evaluate_parts import Answers, evaluate_parts
from placement.pipeline.front_search import LayerWeights, Pick, solve_weights, weights_with
from placement.pipeline.front_solution import Front, FrontPoint
from placement.pipeline.layer_answer import FROM_CURRENT
from placement.pipeline.measure import count_training, measure, measure_named
from placement.pipeline.move_front import Row
from placement.pipeline.solution import Solution
from placement.pipeline.solve import BASELINES, part_figures, parts_to_measure
from placement.pipeline.solve_layers import Deadlines, end_of, placement_of, side_by_side
from placement.solvers import get_solver
from placement.solvers.layer_problems import layer_problem
from placement.solvers.options import Options
from placement.support.parallel import make_executor, width
from placement.support.progress import Listener, Progress, ignore
from placement.traces.split import split_requests
from placement.traces.trace import Trace
from placement.workload.counts_file import Counts
from placement.workload.workload import Workload

T = TypeVar("T")


def solve_front(
    trace: Trace | Counts,
    cluster: Cluster,
    options: Options | None = None,
    *,
    holdout: float = 0.2,
    by_domain: bool = False,
    engine: Executor | None = None,
    workers: int | None = None,
    listener: Listener = ignore,
) -> Front:
    """Solve for each weight of `front_search.WEIGHTS` and the options' own; measure all on the same requests.

    Chosen is the map of `options.balance_weight`; with `options.max_imbalance`, which binds no other, the map that has
    in each layer the fewest sends of those found whose training imbalance is within. Of weights that give the same map
    one is kept: the chosen, else the lowest.
    holdout, by_domain, engine, workers, listener: as of `placement.solve`, and deterministic like it;
    `options.work_limit` is for one layer and weight. Raises as `solve` does, and OptionError where sends are not traded
    at a weight.
    """
    options = options or Options()
    if not 0 <= holdout < 1:
        raise OptionError(f"holdout={holdout} must be at least 0 and less than 1")
    cluster.check_fits(trace.model.num_experts)
    _check_options(options)
    if isinstance(trace, Counts):
        raise OptionError(
            "the front needs a trace: of counts alone sends are unknown; record one, or leave out --pareto"
        )
    parts = parts_to_measure(trace, None, by_domain, options)
    train, held_out = split_requests(trace, holdout, options.seed) if holdout else (trace, None)
    sides = [train] if held_out is None else [train, held_out]
    weights = weights_with(options.balance_weight)
    model = trace.model
    with make_executor(workers) as executor:
        tasks = engine or executor
        workload = count_training(train, options, tasks, listener)
        deadlines = Deadlines(options.time_limit_s, model.num_layers, width(tasks))
        task = partial(_solve_one, workload, cluster, options, weights)
        answers = side_by_side(task, tasks, listener, deadlines)
        picks = _distinct(weights, [layer for _, layer in answers], options)
        columns = [*zip(*(rows for rows, _ in answers), strict=True)]
        columns += [tuple(pick.point.phy2log_P for pick in column) for column in picks.values()]
        placements = [placement_of(model, cluster, rows) for rows in columns]

        measured = partial(measure, cluster=cluster, options=options, executor=executor)
        own = None if options.max_imbalance is not None else float(options.balance_weight)
        chosen_maps = _named(placements, len(BASELINES) + list(picks).index(own), options)

        measure_chosen = partial(measure_named, maps=chosen_maps, cluster=cluster, options=options, executor=executor)

        figures: list[list[Evaluation]] = []
        by_part: list[Answers] = []
        for number, side in enumerate(sides):
            listener(Progress(stage="evaluate", done=number, total=len(sides)))
            figures.append(measured(side, placements))
            if parts is not None:
                by_part.append(evaluate_parts(side, parts, measure_chosen))
        listener(Progress(stage="evaluate", done=len(sides), total=len(sides)))
    points = []
    for number, (weight, column) in enumerate(picks.items(), start=len(BASELINES)):
        chosen = weight == own
        if weight is None or chosen:
            asked = options
        else:
            asked = replace(options, balance_weight=weight, max_imbalance=None, bound="none")
        solution = Solution(
            placement=placements[number],
            cluster=cluster,
            options=asked,
            layers=tuple(pick.report for pick in column),
            result_name=options.solver,
            maps=_named(placements, number, options),
            train=_named(figures[0], number, options),
            held_out=_named(figures[1], number, options) if held_out is not None else {},
            holdout=holdout,
            input_hash=workload.digest(),
            parts=part_figures(parts, by_part, cluster, options, model.top_k, {}) if parts and chosen else None,
        )
        scores = [pick.point.score for pick in column]
        points.append(
            FrontPoint(
                weight=weight,
                solution=solution,
                sends=float(np.mean([score.sends for score in scores])),
                expected_imbalance=float(np.mean([score.expected_imbalance for score in scores])),
            )
        )
    return Front(points=tuple(points), chosen=next(point for point in points if point.weight == own))


def _solve_one(
    workload: Workload,
    cluster: Cluster,
    options: Options,
    weights: tuple[float, ...],
    layer: int,
    seconds: float | None,
) -> tuple[list[Row], LayerWeights]:
    problem = replace(layer_problem(workload, cluster, options, layer), deadline=end_of(seconds))
    rows = [get_solver(name).solve_layer(problem).phy2log_P for name in BASELINES]
    return rows, solve_weights(problem, workload.model.layer_ids[layer], weights)


def _check_options(options: Options) -> None:
    if options.objective != "locality" or not options.sends_count:
        raise OptionError(
            f"the front trades sends against imbalance at many weights, but objective={options.objective!r} with "
            f"transport={options.transport!r} knows no weight; use --objective locality and another transport than "
            f"allgather, or leave out --pareto"
        )
    if options.solver not in FROM_CURRENT:
        raise OptionError(
            f"solver={options.solver!r} cannot start from the map of another weight; use --solver "
            f"{' or '.join(FROM_CURRENT)}, or leave out --pareto"
        )
    if options.moves_limited:
        raise OptionError("the front looks for new maps and knows no current one; leave out max_moves or --pareto")


def _distinct(
    weights: Sequence[float], layers: Sequence[LayerWeights], options: Options
) -> dict[float | None, list[Pick]]:
    """The picks of all layers by weight, then by None those that keep the cap; of equal neighbours one."""
    kept: dict[float | None, list[Pick]] = {}
    last: float | None = None
    for number, weight in enumerate(weights):
        column = [layer.picks[number] for layer in layers]
        if kept and all(a.point.phy2log_P is b.point.phy2log_P for a, b in zip(kept[last], column, strict=True)):
            if weight != options.balance_weight:
                continue
            del kept[last]
        kept[weight], last = column, weight
    if options.max_imbalance is not None:
        kept[None] = [layer.chosen for layer in layers]
    return kept


def _named(answers: Sequence[T], number: int, options: Options) -> dict[str, T]:
    """The baselines' and that of one point, by the names of a solution."""
    return dict(zip((*BASELINES, options.solver), (*answers[: len(BASELINES)], answers[number]), strict=True))
