"""Whether a map's gain holds in steps of few tokens, where chance alone makes some GPU busier than others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from placement.analysis.advise.bench import Bench
from placement.analysis.advise.map_cost import LINEAR, LITTLE, SOLVED
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.steps.figures import StepFigures
from placement.cost.steps.replay import StepCost, evaluate_steps
from placement.pipeline.source import Side, TraceSource
from placement.solvers.options import Options

SIZES = (1, 4, 16, 64, 256, 1024)  # tokens of a GPU in a step
MOST_SIZES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class StepSize:
    """maps: `linear`, `eplb` and `solved` in the steps of one phase and size; uniform: of a uniform router."""

    phase: str
    tokens_per_gpu: int
    steps: int
    maps: dict[str, StepFigures]
    uniform: StepFigures

    @property
    def gain(self) -> float:
        """Share of the modelled step of linear that the solved map saves."""
        return 1 - self.maps[SOLVED].step_us.mean / self.maps[LINEAR].step_us.mean

    @property
    def room(self) -> float:
        """Share of the load of linear's busiest GPU that is not there by chance alone: what balancing could save."""
        return 1 - self.uniform.busiest_gpu.mean / self.maps[LINEAR].busiest_gpu.mean

    @property
    def is_floor(self) -> bool:
        """True if no map can make such steps more even by more than a little."""
        return self.room < LITTLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Steps:
    """Sizes ascend within a phase; those that fill no step on the measured requests are not told."""

    costs: dict[str, tuple[StepCost, ...]]

    @property
    def sizes(self) -> list[StepSize]:
        """Phase by phase, those that have full steps."""
        return [
            StepSize(
                phase=rows[0].phase,
                tokens_per_gpu=rows[0].tokens_per_gpu,
                steps=rows[0].steps,
                maps={name: row.figures for name, row in zip(self.costs, rows, strict=True) if row.figures is not None},
                uniform=rows[0].uniform,
            )
            for rows in zip(*self.costs.values(), strict=True)
            if rows[0].figures is not None
        ]

    def document(self) -> list[dict[str, Any]]:
        """Plain values for JSON."""
        return [
            {
                "phase": one.phase,
                "tokens_per_gpu": one.tokens_per_gpu,
                "steps": one.steps,
                "maps": {name: figures.document() for name, figures in one.maps.items()},
                "uniform": one.uniform.document(),
                "gain": round(one.gain, 6),
                "room": round(one.room, 6),
            }
            for one in self.sizes
        ]


def steps_of(bench: Bench, side: Side, maps: dict[str, Placement], cluster: Cluster, options: Options) -> Steps | str:
    """The maps in steps of the largest SIZES that the measured requests fill; or why they are in none."""
    if not isinstance(side, TraceSource):
        return (
            "the tokens were counted and are not at hand one by one; `placement evaluate --step-tokens` takes a trace"
        )
    tokens = int(side.tokens.tokens_Q().sum())
    sizes = [size for size in SIZES if 2 * size * cluster.num_ranks <= tokens][-MOST_SIZES:]
    if not sizes:
        return f"{tokens} measured tokens fill no step of {cluster.num_ranks} GPUs; record more requests"
    costs = evaluate_steps(
        side.tokens,
        list(maps.values()),
        step_tokens=sizes,
        cluster=cluster,
        replica_choice=options.replica_choice,
        transport=options.transport,
        seed=options.seed,
        executor=bench.run.threads,
    )
    return Steps(costs=dict(zip(maps, costs, strict=True)))
