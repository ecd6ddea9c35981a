"""The steps that every solve is made of, on the executors of one run: count, fit, measure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.evaluation import Evaluation
from placement.cost.transports import TRANSPORTS
from placement.errors import OptionError
from placement.exporters.engines import check_loadable
from placement.pipeline.layer_answer import LayerReport
from placement.pipeline.part_figures import Answers, PartFigures
from placement.pipeline.solve_layers import solve_workload
from placement.pipeline.source import Homes, Side, Source
from placement.solvers import get_solver
from placement.solvers.options import Options
from placement.support.parallel import make_executor
from placement.support.progress import Listener, Progress, ignore
from placement.traces.parts import Parts
from placement.workload.mixed import MixedWorkload
from placement.workload.workload import Workload

BASELINES = ("linear", "eplb")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainHeldOut:
    """Maps measured on both sides, by name, and by part where there are parts; () and {} where none were held out."""

    train: dict[str, Evaluation]
    held_out: dict[str, Evaluation]
    train_parts: Answers = ()
    held_out_parts: Answers = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Where the steps of a solve run.

    holdout  share of the requests that is held out
    threads  of this process; what they run may write where it likes
    tasks    runs functions that only return something: the threads, or workers on other machines
    """

    holdout: float
    threads: Executor
    tasks: Executor
    listener: Listener

    def count(self, side: Side, seed: int, **given: Any) -> Workload:
        """What solvers are given of one capture. Raises OptionError where there are several."""
        workload = self.count_all(side, seed, **given)
        if isinstance(workload, MixedWorkload):
            raise OptionError("several captures are for `placement solve` and `placement robust`; give one here")
        return workload

    def count_all(self, side: Side, seed: int, **given: Any) -> Workload | MixedWorkload:
        """What solvers are given; of several captures their mixture."""
        return side.count(seed, self.tasks, **({"listener": self.listener} | given))

    def fit(
        self, workload: Workload | MixedWorkload, cluster: Cluster, options: Options, **given: Any
    ) -> tuple[dict[str, Placement], tuple[LayerReport, ...]]:
        """`solve_workload` on the executors of the run; `given` are its other arguments."""
        known: dict[str, Any] = {"executor": self.tasks, "listener": self.listener}
        return solve_workload(workload, cluster, options, **(known | given))

    def measure(
        self,
        side: Side,
        maps: Mapping[str, Placement],
        cluster: Cluster,
        options: Options,
        home_Q: Homes = None,
    ) -> dict[str, Evaluation]:
        answers = side.evaluate(list(maps.values()), cluster, options, self.threads, home_Q)
        return dict(zip(maps, answers, strict=True))

    def measure_sides(
        self,
        sides: Sequence[Side | None],
        maps: Mapping[str, Placement],
        cluster: Cluster,
        options: Options,
        parts: Parts | None = None,
        in_parts: Mapping[str, Placement] | None = None,
    ) -> TrainHeldOut:
        """The maps on both sides; those `in_parts` (None: all) also on every part of each."""
        present = [side for side in sides if side is not None]
        whole: list[dict[str, Evaluation]] = []
        by_part: list[Answers] = []
        for number, side in enumerate(present):
            self.listener(Progress(stage="evaluate", done=number, total=len(present)))
            whole.append(self.measure(side, maps, cluster, options))
            views = [] if parts is None else [side.of(parts, part) for part in range(len(parts.names))]
            shown = maps if in_parts is None else in_parts
            by_part.append(tuple({} if view is None else self.measure(view, shown, cluster, options) for view in views))
        self.listener(Progress(stage="evaluate", done=len(present), total=len(present)))
        if len(present) == 1:
            return TrainHeldOut(train=whole[0], held_out={}, train_parts=by_part[0])
        return TrainHeldOut(train=whole[0], held_out=whole[1], train_parts=by_part[0], held_out_parts=by_part[1])


@contextmanager
def begin(
    source: Source,
    cluster: Cluster,
    options: Options,
    holdout: float | None,
    *,
    engine: Executor | None = None,
    workers: int | None = None,
    listener: Listener = ignore,
) -> Iterator[Run]:
    """Check what every solve asks for, and open the executors. `holdout` None: what the source names.

    Raises:
        OptionError: the share to hold out or the solver is none.
        ClusterError: the transport would leave out a part of the topology.
        InfeasibleError: the experts do not fit on the cluster.
    """
    holdout = source.holdout if holdout is None else holdout
    if not 0 <= holdout < 1:
        raise OptionError(f"holdout={holdout} must be at least 0 and less than 1")
    cluster.check_fits(source.model.num_experts)
    TRANSPORTS.make(options.transport).check(cluster)
    get_solver(options.solver)
    if options.engine is not None:
        check_loadable(options.engine, source.model, cluster)
    with make_executor(workers) as threads:
        yield Run(holdout=holdout, threads=threads, tasks=engine or threads, listener=listener)


def figures_by_part(
    parts: Parts | None,
    measured: TrainHeldOut,
    cluster: Cluster,
    options: Options,
    objective_W: Mapping[str, Any] | None = None,
    weight_W: tuple[float, ...] = (),
    bound: float | None = None,
) -> PartFigures | None:
    """What the parts of a solution show; None where there are none."""
    if parts is None:
        return None
    return PartFigures(
        by=parts.by,
        names=parts.names,
        left_out=parts.left_out,
        train=measured.train_parts,
        held_out=measured.held_out_parts,
        cluster=cluster,
        options=options,
        objective_W=objective_W or {},
        weight_W=weight_W,
        bound=bound,
    )
