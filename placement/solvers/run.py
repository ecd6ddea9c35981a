"""Solve every layer of a workload side by side."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from placement.cluster import Cluster
from placement.cost.bounds import smallest_imbalance
from placement.errors import InfeasibleError, LimitError, OptionError
from placement.events import Listener, Progress, ignore
from placement.parallel import usable_cores
from placement.placement_map import Placement
from placement.problem import LayerProblem, Options, Score
from placement.solvers import get_solver
from placement.solvers.layer_problems import layer_problem
from placement.workload import Workload

log = logging.getLogger("placement")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """How one layer was solved; `bound` and `gap` are None where no bound was computed.

    gap = (objective - bound) / objective
    """

    layer_id: int
    solver: str
    status: str
    objective: float
    bound: float | None
    gap: float | None


def solve_workload(
    workload: Workload,
    cluster: Cluster,
    options: Options,
    *,
    baselines: Sequence[str] = (),
    executor: Executor,
    workers: int | None = None,
    listener: Listener = ignore,
) -> tuple[dict[str, Placement], tuple[LayerReport, ...]]:
    """Maps by solver name (the baselines', then that of `options.solver`), and how its layers were solved.

    Raises InfeasibleError, LimitError, OptionError; of several failures the first layer's, however the threads ran.
    """
    model = workload.model
    cluster.check_fits(model.num_experts)
    deadlines = Deadlines(options.time_limit_s, model.num_layers, workers or usable_cores())
    names = [*baselines, options.solver]

    def task(layer: int) -> tuple[dict[str, npt.NDArray[np.int32]], LayerReport]:
        problem = replace(layer_problem(workload, cluster, options, layer), deadline=deadlines.next())
        rows = {name: get_solver(name).solve_layer(problem).phy2log_P for name in baselines}
        rows[options.solver], report = _solve_layer(problem, model.layer_ids[layer])
        return rows, report

    # layers already use all cores; BLAS threads of its own would fight them, and round differently
    with threadpool_limits(1, user_api="blas"):
        futures = [executor.submit(task, layer) for layer in range(model.num_layers)]
        try:
            listener(Progress(stage="solve", done=0, total=model.num_layers))
            for done, future in enumerate(as_completed(futures), start=1):
                if future.exception() is not None:
                    break
                listener(Progress(stage="solve", done=done, total=model.num_layers))
            # after a failure only the layers that were begun are waited for: all before the first that failed
            answers = [future.result() for future in futures if future.done() or not future.cancel()]
        finally:
            for future in futures:
                future.cancel()
    maps = {
        name: Placement(
            model=model,
            num_nodes=cluster.num_nodes,
            gpus_per_node=cluster.gpus_per_node,
            slots_per_gpu=cluster.slots_per_gpu,
            phy2log_LP=np.stack([rows[name] for rows, _ in answers]),
        )
        for name in names
    }
    return maps, tuple(report for _, report in answers)


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


def _solve_layer(problem: LayerProblem, layer_id: int) -> tuple[npt.NDArray[np.int32], LayerReport]:
    options = problem.options
    solver = get_solver(options.solver)
    reason = solver.unsupported(problem)
    if reason is not None:
        raise OptionError(f"solver={options.solver!r} cannot take layer {layer_id}: {reason}; use --solver auto")
    solution = solver.solve_layer(problem)
    score = problem.score(solution.phy2log_P)
    _check_cap(problem, score, layer_id)
    bound, gap = solution.bound, None
    if bound is not None:
        gap = round(max(score.objective - bound, 0.0) / score.objective, 6) if score.objective else 0.0
        bound = round(bound, 9)
    log.debug("layer %d: %s, objective %.6f", layer_id, solution.status, score.objective)
    return solution.phy2log_P, LayerReport(
        layer_id=layer_id,
        solver=solution.solver,
        status=solution.status,
        objective=round(score.objective, 9),
        bound=bound,
        gap=gap,
    )


def _check_cap(problem: LayerProblem, score: Score, layer_id: int) -> None:
    if score.feasible:
        return
    cap = problem.options.max_imbalance
    least = smallest_imbalance(problem.load_E, problem.cluster)
    if cap is not None and least > cap:
        raise InfeasibleError(
            f"layer {layer_id}: max_imbalance={cap} cannot be met: its hottest experts alone make {least:.4f}; allow "
            f"{least:.4f} or more, or add --redundant-experts"
        )
    raise LimitError(
        f"layer {layer_id}: no map with max_imbalance={cap} was found; the best has {score.imbalance:.6f}; raise "
        f"--max-imbalance or --work-limit, or add --redundant-experts"
    )
