"""Fits and measures the maps of all answers alike, and tells the listener of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

from placement.analysis.advise.map_cost import SOLVED, Figures
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.evaluation import evaluate, evaluate_counts
from placement.pipeline.solve import BASELINES
from placement.pipeline.solve_layers import solve_workload
from placement.solvers.options import Options
from placement.support.progress import Listener, Progress
from placement.traces.trace import Trace
from placement.workload.count import count
from placement.workload.counts_file import Counts
from placement.workload.workload import Workload

Side = Trace | Counts
T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Bench:
    """total, fitted: maps to fit in all, and so far."""

    executor: Executor
    workers: int | None
    listener: Listener
    total: int
    fitted: int = 0

    def workload(self, side: Side, seed: int) -> Workload:
        return side.workload(seed) if isinstance(side, Counts) else count(side, seed=seed, executor=self.executor)

    def fit(
        self,
        workload: Workload,
        cluster: Cluster,
        options: Options,
        *,
        baselines: bool = False,
        starts: Placement | None = None,
    ) -> dict[str, Placement]:
        """The map by the name of SOLVED, after `linear` and `eplb` where these are wanted."""
        names = BASELINES if baselines else ()
        maps, _ = self.told(
            lambda: solve_workload(
                workload,
                cluster,
                options,
                baselines=names,
                starts=starts,
                executor=self.executor,
                workers=self.workers,
            )
        )
        return {name: maps[name] for name in names} | {SOLVED: maps[options.solver]}

    def told(self, fit: Callable[[], T]) -> T:
        """What `fit` answers, which counts as one map."""
        if not self.fitted:
            self.listener(Progress(stage="advise", done=0, total=self.total))
        answer = fit()
        self.fitted += 1
        self.listener(Progress(stage="advise", done=self.fitted, total=self.total))
        return answer

    def measure(
        self, side: Side, maps: Mapping[str, Placement], cluster: Cluster, options: Options
    ) -> dict[str, Figures]:
        placements = list(maps.values())
        if isinstance(side, Counts):
            answers = evaluate_counts(side, placements, cluster=cluster, transport=options.transport)
        else:
            answers = evaluate(
                side,
                placements,
                cluster=cluster,
                replica_choice=options.replica_choice,
                transport=options.transport,
                executor=self.executor,
            )
        return {name: Figures.of(answer) for name, answer in zip(maps, answers, strict=True)}
