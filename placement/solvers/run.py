"""Solve every layer of a workload side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import replace
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from placement.cluster import Cluster
from placement.events import Listener, Progress, ignore
from placement.model import Model
from placement.parallel import usable_cores
from placement.placement_map import Placement
from placement.problem import Options
from placement.solvers import get_solver
from placement.solvers.answers import Answer, LayerReport, solve_layer
from placement.solvers.budget import spend
from placement.solvers.fronts import Row
from placement.solvers.layer_problems import layer_problem
from placement.workload import Workload

T = TypeVar("T")


def solve_workload(
    workload: Workload,
    cluster: Cluster,
    options: Options,
    *,
    baselines: Sequence[str] = (),
    current: Placement | None = None,
    starts: Placement | None = None,
    home_S: npt.NDArray[np.int32] | None = None,
    executor: Executor,
    workers: int | None = None,
    listener: Listener = ignore,
) -> tuple[dict[str, Placement], tuple[LayerReport, ...]]:
    """Maps by solver name (the baselines', then that of `options.solver`), and how its layers were solved.

    current: the map that is in use. The searches start from it too, and the answer is relabelled so that few slots move
    away from it, at most those that the options allow.
    starts: maps that searches also start from.
    home_S: home node of each sampled token, int32 [S], -1: uniformly random; None: all are.

    Raises InfeasibleError, LimitError, OptionError; of several failures the first layer's, however the threads ran.
    """
    model = workload.model
    cluster.check_fits(model.num_experts)
    deadlines = Deadlines(options.time_limit_s, model.num_layers, workers or usable_cores())
    current_LP: Sequence[Row | None] = [None] * model.num_layers if current is None else list(current.phy2log_LP)

    def task(layer: int) -> tuple[dict[str, Row], Answer]:
        problem = layer_problem(workload, cluster, options, layer, home_S)
        given = () if starts is None else (starts.phy2log_LP[layer],)
        problem = replace(problem, deadline=deadlines.next(), starts=given)
        rows = {name: get_solver(name).solve_layer(problem).phy2log_P for name in baselines}
        return rows, solve_layer(problem, model.layer_ids[layer], current_LP[layer])

    def objective(answer: tuple[dict[str, Row], Answer]) -> float:
        return answer[1].points[-1].score.objective

    answers = side_by_side(task, model.num_layers, executor, listener, objective)
    chosen = spend([answer.points for _, answer in answers], options.max_moves)
    rows_of = {name: [rows[name] for rows, _ in answers] for name in baselines}
    rows_of[options.solver] = [point.phy2log_P for point in chosen]
    maps = {name: placement_of(model, cluster, rows) for name, rows in rows_of.items()}
    reports = [answer.report(point) for (_, answer), point in zip(answers, chosen, strict=True)]
    return maps, tuple(reports)


def side_by_side(
    task: Callable[[int], T],
    num_layers: int,
    executor: Executor,
    listener: Listener,
    objective: Callable[[T], float] | None = None,
) -> list[T]:
    """What `task` answers for every layer; of several failures the first layer's is raised.

    objective: of an answer; its mean so far is told to the listener.
    """
    # layers already use all cores; BLAS threads of its own would fight them, and round differently
    with threadpool_limits(1, user_api="blas"):
        futures = [executor.submit(task, layer) for layer in range(num_layers)]
        try:
            listener(Progress(stage="solve", done=0, total=num_layers))
            whole = 0.0
            for done, future in enumerate(as_completed(futures), start=1):
                if future.exception() is not None:
                    break
                whole += 0.0 if objective is None else objective(future.result())
                best = None if objective is None else whole / done
                listener(Progress(stage="solve", done=done, total=num_layers, best=best))
            # after a failure only the layers that were begun are waited for: all before the first that failed
            return [future.result() for future in futures if future.done() or not future.cancel()]
        finally:
            for future in futures:
                future.cancel()


def placement_of(model: Model, cluster: Cluster, rows: Sequence[Row]) -> Placement:
    """The rows of all layers as one map."""
    return Placement(
        model=model,
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        slots_per_gpu=cluster.slots_per_gpu,
        phy2log_LP=np.stack(rows),
    )


class Deadlines:
    """Shares what is left of the time limit evenly among the layers that have not begun."""

    def __init__(self, limit_s: float | None, num_layers: int, workers: int) -> None:
        self.end = None if limit_s is None else time.monotonic() + limit_s
        self.left = num_layers
        self.workers = workers

    def next(self) -> float | None:
        if self.end is None:
            return None
        now = time.monotonic()
        waves = max(-(-self.left // self.workers), 1)
        self.left -= 1
        return now + max(self.end - now, 0.0) / waves
