"""Fits and measures the maps of all answers alike, and tells the listener of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from placement.analysis.advise.map_cost import SOLVED, Figures
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.pipeline.run import BASELINES, Run
from placement.pipeline.source import Side
from placement.solvers.options import Options
from placement.support.progress import Progress, ignore
from placement.workload.workload import Workload

T = TypeVar("T")


@dataclass(slots=True, kw_only=True)
class Bench:
    """total, fitted: maps to fit in all, and so far."""

    run: Run
    total: int
    fitted: int = 0

    def workload(self, side: Side, seed: int) -> Workload:
        return self.run.count(side, seed, listener=ignore)

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
        maps, _ = self.heard(
            lambda: self.run.fit(workload, cluster, options, baselines=names, starts=starts, listener=ignore)
        )
        return {name: maps[name] for name in names} | {SOLVED: maps[options.solver]}

    def heard(self, fit: Callable[[], T]) -> T:
        """What `fit` answers, which counts as one map for the listener."""
        if not self.fitted:
            self.run.listener(Progress(stage="advise", done=0, total=self.total))
        answer = fit()
        self.fitted += 1
        self.run.listener(Progress(stage="advise", done=self.fitted, total=self.total))
        return answer

    def measure(
        self, side: Side, maps: Mapping[str, Placement], cluster: Cluster, options: Options
    ) -> dict[str, Figures]:
        answers = self.run.measure(side, maps, cluster, options)
        return {name: Figures.of(answer) for name, answer in answers.items()}
