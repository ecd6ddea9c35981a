"""The main job: traces in, a measured placement out."""

from __future__ import annotations

from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any

from placement.cluster import Cluster
from placement.cost import Evaluation, evaluate
from placement.errors import OptionError
from placement.events import Listener, Progress, ignore
from placement.migration import MigrationPlan, check_fits, migration_plan
from placement.parallel import make_executor
from placement.placement_json import cluster_document, placement_document
from placement.placement_map import Placement
from placement.problem import Options
from placement.solvers import get_solver
from placement.solvers.answers import FROM_CURRENT, LayerReport
from placement.solvers.run import solve_workload
from placement.traces import Trace, count
from placement.traces.split import split_requests
from placement.version import VERSION
from placement.workload import Workload

BASELINES = ("linear", "eplb")
CURRENT = "current"


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A placement, how each layer was solved, and what it costs beside the baselines.

    result_name name of the result in the next three: the solver's name
    maps        name -> placement: the baselines and the result
    train       name -> evaluation on the requests that the solver saw
    held_out    the same on those it did not see; empty if none were held out
    current     the map that was in use, if one was given; then it is among the maps, by that name
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
    current: Placement | None = None

    def migration(self) -> MigrationPlan | None:
        """What has to be copied to get from the current map to the result."""
        if self.current is None:
            return None
        return migration_plan(self.current, self.placement, self.cluster)


def solve(
    trace: Trace,
    cluster: Cluster,
    options: Options | None = None,
    *,
    current: Placement | None = None,
    holdout: float = 0.2,
    workers: int | None = None,
    listener: Listener = ignore,
) -> Solution:
    """Hold out a share of the requests, fit on the rest, measure linear, eplb and the result on both.

    The placement returned is the one that was measured. With a `current` map it is a change of that one: nodes and GPUs
    that are alike are named so that few slots move, `options.max_moves` limits them, and `auto` and `anneal` are never
    worse than the current map on the training objective. Deterministic in (trace, cluster, options, holdout) unless a
    time limit is set, whatever the number of workers. Raises TraceError, InfeasibleError, LimitError, and MapError if
    the current map is for another model or cluster.
    """
    options = options or Options()
    if not 0 <= holdout < 1:
        raise OptionError(f"holdout={holdout} must be at least 0 and less than 1")
    cluster.check_fits(trace.model.num_experts)
    get_solver(options.solver)
    _check_current(current, trace, cluster, options)
    train, held_out = split_requests(trace, holdout, options.seed) if holdout else (trace, None)
    with make_executor(workers) as executor:
        workload = _count(train, options, executor, listener)
        maps, layers = solve_workload(
            workload,
            cluster,
            options,
            baselines=BASELINES,
            current=current,
            executor=executor,
            workers=workers,
            listener=listener,
        )
        if current is not None:
            maps = {CURRENT: current} | maps
        parts = [part for part in (train, held_out) if part is not None]
        measured: list[dict[str, Evaluation]] = []
        for number, part in enumerate(parts):
            listener(Progress(stage="evaluate", done=number, total=len(parts)))
            answers = evaluate(
                part,
                list(maps.values()),
                cluster=cluster,
                replica_choice=options.replica_choice,
                transport=options.transport,
                executor=executor,
            )
            measured.append(dict(zip(maps, answers, strict=True)))
        listener(Progress(stage="evaluate", done=len(parts), total=len(parts)))
    return Solution(
        placement=maps[options.solver],
        cluster=cluster,
        options=options,
        layers=layers,
        result_name=options.solver,
        maps=maps,
        train=measured[0],
        held_out=measured[1] if held_out is not None else {},
        holdout=holdout,
        input_hash=workload.digest(),
        current=current,
    )


def _check_current(current: Placement | None, trace: Trace, cluster: Cluster, options: Options) -> None:
    if current is not None:
        check_fits(current, trace.model, cluster)
    elif options.moves_limited:
        raise OptionError("max_moves says how far the answer may be from a current map; give one with --from FILE")
    if options.moves_limited and options.solver not in FROM_CURRENT:
        raise OptionError(f"solver={options.solver!r} knows no max_moves; use --solver {' or '.join(FROM_CURRENT)}")


def _count(trace: Trace, options: Options, executor: Executor, listener: Listener) -> Workload:
    total = trace.num_tokens_stored
    done = 0

    def counted(tokens: int) -> None:
        nonlocal done
        done += tokens
        listener(Progress(stage="count", done=done, total=total))

    workload = count(trace, seed=options.seed, executor=executor, progress=counted)
    listener(Progress(stage="count", done=total, total=total))
    return workload


def solution_document(solution: Solution) -> dict[str, Any]:
    """The placement file of a solution: `solve -o`, `solve --json` and the service answer this."""
    parts = {
        part: {name: evaluation.summary() for name, evaluation in answers.items()} or None
        for part, answers in (("train", solution.train), ("held_out", solution.held_out))
    }
    plan = solution.migration()
    return placement_document(
        solution.placement,
        migration=None if plan is None else plan.summary(),
        evaluation={
            "replica_choice": solution.options.replica_choice,
            "transport": solution.options.transport,
            "result": solution.result_name,
            **parts,
        },
        layers=[asdict(layer) for layer in solution.layers],
        provenance={
            "version": VERSION,
            "seed": solution.options.seed,
            "options": asdict(solution.options) | {"holdout": solution.holdout},
            "cluster": cluster_document(solution.cluster),
            "input_hash": solution.input_hash,
        },
    )
