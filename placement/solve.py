"""The main job: traces in, a measured placement out."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Executor, as_completed
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from placement.cluster import Cluster
from placement.cost import Evaluation, evaluate
from placement.cost.bounds import smallest_imbalance
from placement.errors import InfeasibleError, LimitError, OptionError
from placement.events import Listener, Progress, ignore
from placement.parallel import make_executor, usable_cores
from placement.placement_json import placement_document
from placement.placement_map import Placement
from placement.problem import LayerProblem, LayerSolution, Options, Score
from placement.solvers import get_solver
from placement.solvers.layer_problems import layer_problem
from placement.traces import Trace, count
from placement.traces.split import split_requests
from placement.version import VERSION
from placement.workload import Workload

log = logging.getLogger("placement")

BASELINES = ("linear", "eplb")


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A placement, how each layer was solved, and what it costs beside the baselines.

    result_name name of the result in the next three: the solver's name
    maps        name -> placement: the baselines and the result
    train       name -> evaluation on the requests that the solver saw
    held_out    the same on those it did not see; empty if none were held out
    """

    placement: Placement
    cluster: Cluster
    options: Options
    layers: tuple[LayerReport, ...]
    result_name: str
    maps: dict[str, Placement]
    train: dict[str, Evaluation]
    held_out: dict[str, Evaluation]
    holdout: float
    input_hash: str


def solve(
    trace: Trace,
    cluster: Cluster,
    options: Options | None = None,
    *,
    holdout: float = 0.2,
    workers: int | None = None,
    listener: Listener = ignore,
) -> Solution:
    """Hold out a share of the requests, fit on the rest, measure linear, eplb and the result on both.

    The placement returned is the one that was measured. Deterministic in (trace, cluster, options, holdout) unless a
    time limit is set, whatever the number of workers. Raises TraceError, InfeasibleError, LimitError.
    """
    options = options or Options()
    if not 0 <= holdout < 1:
        raise OptionError(f"holdout={holdout} must be at least 0 and less than 1")
    cluster.check_fits(trace.model.num_experts)
    get_solver(options.solver)
    train, held_out = split_requests(trace, holdout, options.seed) if holdout else (trace, None)
    with make_executor(workers) as executor:
        workload = count_workload(train, options, executor, listener)
        placement, layers = solve_workload(
            workload, cluster, options, executor=executor, workers=workers, listener=listener
        )
        maps = {name: _baseline(name, workload, cluster, options) for name in BASELINES}
        maps[options.solver] = placement
        parts = [part for part in (train, held_out) if part is not None]
        measured: list[dict[str, Evaluation]] = []
        for number, part in enumerate(parts):
            listener(Progress(stage="evaluate", done=number, total=len(parts)))
            answers = evaluate(
                part,
                list(maps.values()),
                cluster=cluster,
                replica_choice=options.replica_choice,
                executor=executor,
            )
            measured.append(dict(zip(maps, answers, strict=True)))
        listener(Progress(stage="evaluate", done=len(parts), total=len(parts)))
    return Solution(
        placement=placement,
        cluster=cluster,
        options=options,
        layers=layers,
        result_name=options.solver,
        maps=maps,
        train=measured[0],
        held_out=measured[1] if held_out is not None else {},
        holdout=holdout,
        input_hash=workload.digest(),
    )


def count_workload(trace: Trace, options: Options, executor: Executor | None, listener: Listener) -> Workload:
    total = trace.num_tokens_stored
    done = 0

    def counted(tokens: int) -> None:
        nonlocal done
        done += tokens
        listener(Progress(stage="count", done=done, total=total))

    workload = count(trace, seed=options.seed, executor=executor, progress=counted)
    listener(Progress(stage="count", done=total, total=total))
    return workload


def solve_workload(
    workload: Workload,
    cluster: Cluster,
    options: Options,
    *,
    executor: Executor,
    workers: int | None = None,
    listener: Listener = ignore,
) -> tuple[Placement, tuple[LayerReport, ...]]:
    """Solve every layer of a workload; layers run side by side. Raises InfeasibleError, LimitError, OptionError."""
    cluster.check_fits(workload.model.num_experts)
    num_layers = workload.model.num_layers
    # layers already use all cores; BLAS threads of its own would fight them, and round differently
    with threadpool_limits(1, user_api="blas"):
        rows = _solve_layers(workload, cluster, options, executor, workers or usable_cores(), listener)
    placement = Placement(
        model=workload.model,
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        slots_per_gpu=cluster.slots_per_gpu,
        phy2log_LP=np.stack([rows[layer][0].phy2log_P for layer in range(num_layers)]),
    )
    return placement, tuple(rows[layer][1] for layer in range(num_layers))


def _solve_layers(
    workload: Workload, cluster: Cluster, options: Options, executor: Executor, workers: int, listener: Listener
) -> dict[int, tuple[LayerSolution, LayerReport]]:
    num_layers = workload.model.num_layers
    deadlines = _Deadlines(options.time_limit_s, num_layers, workers)
    futures = {
        executor.submit(_solve_layer, workload, cluster, options, layer, deadlines): layer
        for layer in range(num_layers)
    }
    rows: dict[int, tuple[LayerSolution, LayerReport]] = {}
    try:
        listener(Progress(stage="solve", done=0, total=num_layers))
        for future in as_completed(futures):
            if future.exception() is not None:
                break
            rows[futures[future]] = future.result()
            listener(Progress(stage="solve", done=len(rows), total=num_layers))
        if len(rows) < num_layers:  # of several failures the first layer's is told, however the threads ran
            for future in futures:
                if not future.cancel():
                    future.result()
    finally:
        for future in futures:
            future.cancel()
    return rows


class _Deadlines:
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


def _solve_layer(
    workload: Workload, cluster: Cluster, options: Options, layer: int, deadlines: _Deadlines
) -> tuple[LayerSolution, LayerReport]:
    problem = replace(layer_problem(workload, cluster, options, layer), deadline=deadlines.next())
    solver = get_solver(options.solver)
    reason = solver.unsupported(problem)
    if reason is not None:
        raise OptionError(f"solver={options.solver!r} cannot take this problem: {reason}; use --solver auto")
    solution = solver.solve_layer(problem)
    score = problem.score(solution.phy2log_P)
    layer_id = workload.model.layer_ids[layer]
    _check_cap(problem, score, layer_id)
    bound = solution.bound
    gap = None if bound is None else max(score.objective - bound, 0.0) / score.objective if score.objective else 0.0
    log.debug("layer %d: %s, objective %.6f", layer_id, solution.status, score.objective)
    return solution, LayerReport(
        layer_id=layer_id,
        solver=solution.solver,
        status=solution.status,
        objective=round(score.objective, 9),
        bound=None if bound is None else round(bound, 9),
        gap=None if gap is None else round(gap, 6),
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


def _baseline(name: str, workload: Workload, cluster: Cluster, options: Options) -> Placement:
    solver = get_solver(name)
    rows = [
        solver.solve_layer(layer_problem(workload, cluster, options, layer)).phy2log_P
        for layer in range(workload.model.num_layers)
    ]
    return Placement(
        model=workload.model,
        num_nodes=cluster.num_nodes,
        gpus_per_node=cluster.gpus_per_node,
        slots_per_gpu=cluster.slots_per_gpu,
        phy2log_LP=np.stack(rows),
    )


def solution_document(solution: Solution) -> dict[str, Any]:
    """The placement file of a solution: `solve -o`, `solve --json` and the service answer this."""
    parts = {
        part: {name: evaluation.summary() for name, evaluation in answers.items()} or None
        for part, answers in (("train", solution.train), ("held_out", solution.held_out))
    }
    return placement_document(
        solution.placement,
        evaluation={
            "replica_choice": solution.options.replica_choice,
            "result": solution.result_name,
            **parts,
        },
        layers=[asdict(layer) for layer in solution.layers],
        provenance={
            "version": VERSION,
            "seed": solution.options.seed,
            "options": asdict(solution.options) | {"holdout": solution.holdout},
            "cluster": asdict(solution.cluster) | {"gpu_speeds": list(solution.cluster.gpu_speeds)},
            "input_hash": solution.input_hash,
        },
    )
