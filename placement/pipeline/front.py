"""Solves at every price of imbalance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from placement.core.cluster import Cluster
from placement.errors import OptionError
from placement.pipeline.front_search import LayerWeights, Pick, solve_weights, weights_with
from placement.pipeline.front_solution import Front, FrontPoint
from placement.pipeline.layer_answer import FROM_CURRENT
from placement.pipeline.move_front import Row
from placement.pipeline.run import BASELINES, begin, figures_by_part
from placement.pipeline.solution import Solution
from placement.pipeline.solve import domains_of
from placement.pipeline.solve_layers import Deadlines, end_of, placement_of, side_by_side
from placement.pipeline.source import source_of
from placement.solvers import get_solver
from placement.solvers.layer_problems import layer_problem
from placement.solvers.options import Options
from placement.support.parallel import width
from placement.support.progress import Listener, ignore
from placement.traces.trace import Trace
from placement.workload.counted import CountedTrace
from placement.workload.counts_file import ExpertCounts
from placement.workload.workload import Workload

T = TypeVar("T")


def solve_front(
    trace: Trace | ExpertCounts | CountedTrace,
    cluster: Cluster,
    options: Options | None = None,
    *,
    holdout: float | None = None,
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
    source = source_of(trace)
    with begin(source, cluster, options, holdout, engine=engine, workers=workers, listener=listener) as run:
        holdout = run.holdout
        check_front(options)
        model = source.trace("the front").model
        parts = domains_of(source) if by_domain else None
        train, held_out = source.split(holdout, options.seed)
        weights = weights_with(options.balance_weight)
        workload = run.count(train, options.seed)
        deadlines = Deadlines(options.time_limit_s, model.num_layers, width(run.tasks))
        task = partial(_solve_one, workload, cluster, options, weights)
        answers = side_by_side(task, run.tasks, listener, deadlines)
        picks = _distinct(weights, [layer for _, layer in answers], options)
        columns = [*zip(*(rows for rows, _ in answers), strict=True)]
        columns += [tuple(pick.point.phy2log_P for pick in column) for column in picks.values()]
        own = None if options.max_imbalance is not None else float(options.balance_weight)
        maps: dict[Any, Any] = dict(
            zip((*BASELINES, *picks), (placement_of(model, cluster, rows) for rows in columns), strict=True)
        )
        measured = run.measure_sides((train, held_out), maps, cluster, options, parts, _named(maps, own, options))
    points = []
    for weight, column in picks.items():
        chosen = weight == own
        if weight is None or chosen:
            asked = options
        else:
            asked = replace(options, balance_weight=weight, max_imbalance=None, bound="none")
        solution = Solution(
            cluster=cluster,
            options=asked,
            layers=tuple(pick.report for pick in column),
            result_name=options.solver,
            maps=_named(maps, weight, options),
            train=_named(measured.train, weight, options),
            held_out=_named(measured.held_out, weight, options),
            holdout=holdout,
            input_hash=workload.digest(),
            parts=figures_by_part(parts, measured, cluster, options) if chosen else None,
        )
        scores = [pick.point.score for pick in column]
        points.append(
            FrontPoint(
                weight=weight,
                solution=solution,
                sends=float(np.mean([score.sends for score in scores])),
                paid_sends=float(np.mean([score.paid_sends for score in scores])),
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


def check_front(options: Options) -> None:
    """Raise OptionError for options with which there is no front."""
    if options.objective != "locality" or not options.sends_count:
        raise OptionError(
            f"the front trades sends against imbalance at many weights, but objective={options.objective!r} with "
            f"transport={options.transport!r} knows no weight; use --objective locality and another transport than "
            f"allgather"
        )
    if options.solver not in FROM_CURRENT:
        raise OptionError(
            f"solver={options.solver!r} cannot start from the map of another weight; use --solver "
            f"{' or '.join(FROM_CURRENT)}"
        )
    if options.moves_limited:
        raise OptionError("the front looks for new maps and knows no current one; leave out max_moves")


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


def _named(answers: Mapping[Any, T], weight: float | None, options: Options) -> dict[str, T]:
    """The baselines' and that of one point, by the names of a solution; {} of no answers."""
    if not answers:
        return {}
    return {name: answers[name] for name in BASELINES} | {options.solver: answers[weight]}
