"""Replay a trace as a server would run it, step by step, and measure maps on each step."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.choices import REPLICA_CHOICE, TRANSPORT
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.choices import REPLICA_CHOICES
from placement.cost.given import checked_homes, clusters_for
from placement.cost.steps.figures import StepFigures
from placement.cost.steps.given import check_full, check_step_tokens
from placement.cost.steps.map_in_steps import MapInSteps
from placement.cost.steps.uniform import uniform_steps
from placement.support.parallel import run_in_order, width
from placement.traces.classes import PHASES
from placement.traces.cut import PREFILL, cut_requests
from placement.traces.server_order import ServerWindow, server_windows
from placement.traces.trace import Trace

STEP_TOKENS = (16, 64, 256, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """What a map costs in steps of one size, of one phase.

    Attributes:
        phase: `prefill` or `decode`; drafts are of the decode.
        tokens_per_gpu: Tokens that each GPU brings to a step, in the mean over GPUs.
        steps: Full steps.
        left_out: Tokens of the phase that fill no step.
        figures: Of the map; None where no step is full.
        uniform: Of a uniform router on a perfectly spread map, in steps of that size.
    """

    phase: str
    tokens_per_gpu: int
    steps: int
    left_out: int
    figures: StepFigures | None
    uniform: StepFigures

    def document(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "phase": self.phase,
            "tokens_per_gpu": self.tokens_per_gpu,
            "steps": self.steps,
            "left_out_tokens": self.left_out,
            "map": None if self.figures is None else self.figures.document(),
            "uniform": self.uniform.document(),
        }


def evaluate_steps(
    trace: Trace,
    placements: Sequence[Placement],
    *,
    step_tokens: Sequence[int] = STEP_TOKENS,
    cluster: Cluster | Sequence[Cluster | None] | None = None,
    replica_choice: str = REPLICA_CHOICE,
    transport: str = TRANSPORT,
    home_Q: npt.NDArray[np.int32] | None = None,
    seed: int = 0,
    executor: Executor | None = None,
) -> list[tuple[StepCost, ...]]:
    """What each placement costs in steps of so many tokens a GPU, as a server would run the kept tokens of `trace`.

    Prefill and decode have steps of their own. In which order tokens come, and on which rank each is at home, says
    `placement.traces.server_order`. Where experts have copies, each assignment has the slot that the replica choice
    draws for it. Deterministic in all that is given, whatever the executor.

    Args:
        trace: Where the tokens come from.
        placements: The maps to measure, all of the trace's model.
        step_tokens: Tokens that each GPU brings to a step, in the mean over GPUs; one or several sizes.
        cluster: Links, bytes and speeds, one for all maps or one for each; None: the defaults. Shapes must agree.
        replica_choice: How the engine picks the replica that serves an assignment.
        transport: What the engine's all-to-all sends.
        home_Q: Home node of every request, int32 [Q], -1: any node; None: tokens are dealt to all ranks alike.
        seed: Seed of the order, and of the uniform router.
        executor: Runs the layers side by side; None: one after another.

    Returns:
        For each placement, in their order, a row for each phase that has tokens and each size.

    Raises:
        MapError: A map is for another model, or another shape of cluster.
        OptionError: An option is unknown, a size is no positive number or larger than the trace, or `home_Q` has
            another shape or other nodes.
        TraceError: A shard of the trace is wrong.
    """
    check_step_tokens(step_tokens)
    clusters = clusters_for(trace.model, placements, cluster, transport)
    homes = None if home_Q is None else checked_homes(home_Q, len(trace.requests), placements)
    choice = REPLICA_CHOICES.make(replica_choice)
    parts = dict(zip(PHASES, cut_requests(trace, PREFILL), strict=True))
    tokens_of = {phase: int(part.tokens_Q().sum()) for phase, part in parts.items()}
    tokens_of = {phase: tokens for phase, tokens in tokens_of.items() if tokens}
    for num_ranks in dict.fromkeys(one.num_ranks for one in clusters):
        check_full(step_tokens, tokens_of, num_ranks)
    rows: dict[int, list[StepCost]] = {number: [] for number in range(len(placements))}
    for phase, tokens in tokens_of.items():
        for shape in dict.fromkeys(one.shape[:2] for one in clusters):
            maps = {
                number: MapInSteps(placements[number], one, choice, transport, step_tokens)
                for number, one in enumerate(clusters)
                if one.shape[:2] == shape
            }
            for window in server_windows(
                parts[phase],
                next(iter(maps.values())).cluster,
                home_Q=homes,
                one_by_one=phase == PREFILL,
                most_step=max(step_tokens) * shape[0] * shape[1],
                seed=seed,
            ):
                _replay(window, list(maps.values()), executor)
            for number, one in maps.items():
                rows[number] += [
                    StepCost(
                        phase=phase,
                        tokens_per_gpu=size,
                        steps=one.steps(place),
                        left_out=tokens - one.steps(place) * size * one.cluster.num_ranks,
                        figures=one.figures(place),
                        uniform=uniform_steps(trace.model, one.cluster, transport, size, seed),
                    )
                    for place, size in enumerate(step_tokens)
                ]
    return [tuple(row) for row in rows.values()]


def _replay(window: ServerWindow, maps: Sequence[MapInSteps], executor: Executor | None) -> None:
    """Add the steps of the window to what each map has cost; the layers are added up in their order."""
    cluster, num_layers = maps[0].cluster, window.tokens.trace.model.num_layers
    home_T = (window.rank_T // cluster.gpus_per_node).astype(np.int32)
    by_rank_T = np.argsort(window.rank_T, kind="stable")
    rows_G = np.split(by_rank_T, np.cumsum(np.bincount(window.rank_T, minlength=cluster.num_ranks))[:-1])

    def of_layer(layer: int) -> list[list[npt.NDArray[np.float64]]]:
        ids_TK = window.tokens.ids_TK(layer)
        return [one.layer(layer, ids_TK, home_T, rows_G) for one in maps]

    most = 1 if executor is None else 2 * width(executor)
    whole: list[list[npt.NDArray[np.float64]]] = []
    for layer, found in enumerate(run_in_order(of_layer, range(num_layers), executor, most)):
        if layer == 0:
            whole = found
            continue
        for sums, more in zip(whole, found, strict=True):
            for sum_SC, more_SC in zip(sums, more, strict=True):
                sum_SC += more_SC
    for one, sums in zip(maps, whole, strict=True):
        one.add(sums, num_layers)
