"""Solve every layer of a workload side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import replace
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from placement.bounds.spectral_bound import QUICK_EXPERTS
from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.core.placement import Placement
from placement.cost.covers import EXACT_NODES
from placement.pipeline.layer_answer import Answer, LayerReport, solve_layer
from placement.pipeline.move_budget import spend
from placement.pipeline.move_front import LayerInUse, Row
from placement.solvers import get_solver
from placement.solvers.layer_problems import layer_problem
from placement.solvers.options import Options
from placement.solvers.pieces import pieces_of
from placement.solvers.problem import LayerProblem
from placement.support.compiling import compile_pieces
from placement.support.parallel import shares_memory, width
from placement.support.progress import Listener, Progress, ignore
from placement.workload.mixed import MixedWorkload
from placement.workload.workload import Workload

T = TypeVar("T")
BOUNDED_LAYERS, BOUNDED_ON_MANY_NODES = 8, 3  # where a bound costs more than the search; copies beyond EXACT_NODES
FEW_EXPERTS = 16  # with so few the bound is quick, whatever it is of


def solve_workload(
    workload: Workload | MixedWorkload,
    cluster: Cluster,
    options: Options,
    *,
    baselines: Sequence[str] = (),
    current: Placement | None = None,
    held_LGE: npt.NDArray[np.bool_] | None = None,
    starts: Placement | None = None,
    home_S: npt.NDArray[np.int32] | None = None,
    domain_QD: npt.NDArray[np.bool_] | None = None,
    shows_parts: bool = False,
    executor: Executor,
    workers: int | None = None,
    listener: Listener = ignore,
) -> tuple[dict[str, Placement], tuple[LayerReport, ...]]:
    """Maps by solver name (the baselines', then that of `options.solver`), and how its layers were solved.

    current: the map that is in use. The searches start from it too, and the answer is relabelled so that few slots move
    away from it, at most those that the options allow.
    held_LGE: what every rank holds before the change, bool [L, G, E], where `current` does not say it: the map in use
    was for a cluster of another size, see `placement.core.resize`.
    starts: maps that searches also start from.
    home_S: home node of each sampled token, int32 [S], -1: uniformly random; None: all are.
    domain_QD: which request profiles are of which domain, bool [Q, D]; None: domains are unknown.
    shows_parts: parts of the traffic will be told of, whose kernels are compiled beside the others.

    Raises InfeasibleError, LimitError, OptionError; of several failures the first layer's, however the threads ran.
    """
    model = workload.model
    cluster.check_fits(model.num_experts)
    if shares_memory(executor):
        needed = pieces_of(model.num_experts, cluster, options, shows_parts=shows_parts)
        compile_pieces(needed, workers=width(executor), listener=listener)
    deadlines = Deadlines(options.time_limit_s, model.num_layers, workers or width(executor))
    known = partial(layer_problem, workload, cluster, options, home_S=home_S, domain_QD=domain_QD)
    task = partial(_solve_one, known, workload.model, tuple(baselines), current, held_LGE, starts)
    answers = side_by_side(task, executor, listener, deadlines, _objective)
    chosen = spend([answer.points for _, answer in answers], options.max_moves)
    rows_of = {name: [rows[name] for rows, _ in answers] for name in baselines}
    rows_of[options.solver] = [point.phy2log_P for point in chosen]
    maps = {name: placement_of(model, cluster, rows) for name, rows in rows_of.items()}
    reports = [answer.report(point) for (_, answer), point in zip(answers, chosen, strict=True)]
    return maps, tuple(reports)


def _objective(solved: tuple[dict[str, Row], Answer]) -> float:
    return solved[1].points[-1].score.objective


def is_bounded(layer: int, model: Model, cluster: Cluster, *, homes_given: bool) -> bool:
    """Whether the quick bound is computed: where the bound costs more than the search, on some layers.

    So it is with many experts; and with more than a few where they have copies or homes are given: each step of that
    bound goes over all sets.
    """
    copies = cluster.num_slots > model.num_experts
    number = BOUNDED_ON_MANY_NODES if copies and cluster.num_nodes > EXACT_NODES else BOUNDED_LAYERS
    if model.num_experts <= (FEW_EXPERTS if copies or homes_given else QUICK_EXPERTS) or model.num_layers <= number:
        return True
    return layer in {i * model.num_layers // number for i in range(number)}


def _solve_one(
    problem_of: Callable[[int], LayerProblem],
    model: Model,
    baselines: Sequence[str],
    current: Placement | None,
    held_LGE: npt.NDArray[np.bool_] | None,
    starts: Placement | None,
    layer: int,
    seconds: float | None,
) -> tuple[dict[str, Row], Answer]:
    """The baselines' rows of one layer and its answer; a function of its own, so that any process can run it."""
    problem = problem_of(layer)
    given = () if starts is None else (starts.phy2log_LP[layer],)
    problem = replace(problem, deadline=end_of(seconds), starts=given)
    bounded = is_bounded(layer, model, problem.cluster, homes_given=problem.home_U is not None)
    if problem.options.bound == "quick" and not bounded:
        problem = replace(problem, options=replace(problem.options, bound="none"))
    rows = {name: get_solver(name).solve_layer(problem).phy2log_P for name in baselines}
    now = None
    if current is not None:
        now = LayerInUse.of(current.phy2log_LP[layer], problem.cluster, problem.num_experts)
        now = now if held_LGE is None else replace(now, held_GE=held_LGE[layer])
    return rows, solve_layer(problem, model.layer_ids[layer], now)


def side_by_side(
    task: Callable[[int, float | None], T],
    executor: Executor,
    listener: Listener,
    deadlines: Deadlines,
    objective: Callable[[T], float] | None = None,
) -> list[T]:
    """What `task` answers for every layer, given the seconds that it has; of several failures the first layer's.

    A layer is handed out when a worker is free for it, so that its seconds begin with it; clocks of other machines
    do not matter then.
    objective: of an answer; its mean so far is told to the listener.
    """
    num_layers = deadlines.num_layers
    # layers already use all cores; BLAS threads of its own would fight them, and round differently
    with threadpool_limits(1, user_api="blas"):
        futures: list[Future[T]] = []
        running: set[Future[T]] = set()
        failed, done = False, 0
        listener(Progress(stage="solve", done=0, total=num_layers))
        try:
            whole = 0.0
            while running or (len(futures) < num_layers and not failed):
                while len(running) < deadlines.workers and len(futures) < num_layers and not failed:
                    futures.append(executor.submit(task, len(futures), deadlines.next_s()))
                    running.add(futures[-1])
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                for future in finished:
                    failed = failed or future.exception() is not None
                    done += 1
                    if not failed:
                        whole += 0.0 if objective is None else objective(future.result())
                        best = None if objective is None else whole / done
                        listener(Progress(stage="solve", done=done, total=num_layers, best=best))
            # after a failure only the layers that were begun are waited for: all before the first that failed
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()


def placement_of(model: Model, cluster: Cluster, rows: Sequence[Row]) -> Placement:
    """The rows of all layers as one map."""
    return Placement(model=model, **cluster.sizes(), phy2log_LP=np.stack(rows))


class Deadlines:
    """Shares what is left of the time limit evenly among the layers that have not begun."""

    def __init__(self, limit_s: float | None, num_layers: int, workers: int) -> None:
        self.end = end_of(limit_s)
        self.num_layers = num_layers
        self.left = num_layers
        self.workers = workers

    def next_s(self) -> float | None:
        """Seconds for the layer that begins now; None: as many as it needs."""
        if self.end is None:
            return None
        waves = max(-(-self.left // self.workers), 1)
        self.left -= 1
        return max(self.end - time.monotonic(), 0.0) / waves


def end_of(seconds: float | None) -> float | None:
    """`time.monotonic()` in so many seconds, on the clock of this process."""
    return None if seconds is None else time.monotonic() + seconds
