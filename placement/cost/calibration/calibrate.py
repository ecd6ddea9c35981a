"""Fit the speeds of a cluster to measured times of steps: `evaluate_steps` says what these steps had to do."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.choices import REPLICA_CHOICE, TRANSPORT
from placement.core.cluster import TIMES, Cluster
from placement.core.placement import Placement
from placement.core.topology import Topology
from placement.cost.calibration.fit import Fit, fit_unit_times
from placement.cost.calibration.measured import MeasuredStep
from placement.cost.step_time import Term, unit_times_us
from placement.cost.steps.replay import StepCost, evaluate_steps
from placement.documents.placement import PlacementFile, load_placement
from placement.errors import ClusterError, InputError
from placement.traces.trace import Trace

Floats = npt.NDArray[np.float64]
ROUNDS = 8  # of replays: which steps go by products and which by weights depends on what is fitted
KEYS = {
    Term.NETWORK: "inter_gbps",
    Term.PACKING: "copy_us",
    Term.FAN_OUT: "intra_gbps",
    Term.COMPUTE: "gpu_tflops",
    Term.MEMORY: "memory_gbps",
    Term.LATENCY: "latency_us",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """What measured times say of a cluster.

    Attributes:
        cluster: The cluster with the fitted speeds.
        fitted: Value of each key of the cluster file that was fitted.
        kept: Why a key was not, and is as it was.
        rows: The measured times.
        modelled_us_R: The fitted times of the rows, float64 [R].
    """

    cluster: Cluster
    fitted: dict[str, float]
    kept: dict[str, str]
    rows: tuple[MeasuredStep, ...]
    modelled_us_R: Floats

    def error_R(self) -> Floats:
        """Modelled over measured time less one, float64 [R]."""
        return np.asarray(self.modelled_us_R / np.array([row.time_us for row in self.rows]) - 1.0)


def calibrate(
    rows: Sequence[MeasuredStep], trace: Trace, cluster: Cluster, *, seed: int = 0, executor: Executor | None = None
) -> Calibration:
    """Fit the speeds to the rows: non-negative least squares of the relative errors.

    Args:
        rows: Maps, sizes of steps and measured times; every map may have slots of its own.
        trace: Traffic like that which ran.
        cluster: Sizes of experts and tokens; and the speeds that are kept where times do not say.
        seed: Seed of the order of tokens, see `evaluate_steps`.
        executor: Runs the layers side by side; None: one after another.

    Raises:
        InputError: A map cannot be read or does not fit the trace or the cluster, a step is larger than the trace, or a
            row does not say of which phase it is and the trace has both.
    """
    replay = _Replay(rows, trace, seed, executor)
    best: tuple[float, Fit] | None = None
    now = cluster
    for _ in range(ROUNDS):
        count_R6 = replay.counts(now)
        fit = fit_unit_times(count_R6, replay.time_us_R, unit_times_us(cluster))
        error = float(np.square(fit.modelled_us_R / replay.time_us_R - 1.0).sum())
        if best is not None and error >= best[0] * (1 - 1e-9):
            break
        best, now = (error, fit), with_unit_times(cluster, fit)
    assert best is not None
    found = with_unit_times(cluster, best[1])
    return Calibration(
        cluster=found,
        fitted={KEYS[term]: getattr(found, KEYS[term]) for term in Term if term not in best[1].kept},
        kept={KEYS[term]: why for term, why in best[1].kept.items()},
        rows=tuple(rows),
        modelled_us_R=best[1].modelled_us_R,
    )


def with_unit_times(cluster: Cluster, fit: Fit) -> Cluster:
    """The cluster of which units take what was fitted; links keep their ratios to one another."""
    before_us = unit_times_us(cluster)
    values: dict[str, Any] = {}
    for term, key in KEYS.items():
        if term not in fit.kept:
            after_us = float(fit.unit_us[term])
            values[key] = after_us if key in TIMES else getattr(cluster, key) * before_us[term] / after_us
    faster = values.get("inter_gbps", cluster.inter_gbps) / cluster.inter_gbps
    links = cluster.topology
    topology = Topology(
        levels=tuple(replace(level, gbps=level.gbps * faster) for level in links.levels),
        node_gbps=tuple(gbps * faster for gbps in links.node_gbps),
        rank_cost=links.rank_cost,
    )
    return replace(cluster, topology=topology, **values)


class _Replay:
    """Maps of the rows in the steps of a trace.

    time_us_R  measured, float64 [R]
    """

    def __init__(self, rows: Sequence[MeasuredStep], trace: Trace, seed: int, executor: Executor | None) -> None:
        self._rows, self._trace, self._seed, self._executor = rows, trace, seed, executor
        self.time_us_R = np.array([row.time_us for row in rows])
        self._maps = {path: load_placement(path) for path in dict.fromkeys(row.map for row in rows)}

    def counts(self, cluster: Cluster) -> Floats:
        """Units of each term in the mean step of each row, float64 [R, 6]."""
        cluster = replace(cluster, copy_us=1.0, latency_us=1.0)  # a unit that takes 0 could not be counted
        costs = {path: self._costs(path, *one, cluster) for path, one in self._maps.items()}
        return np.array([_step_of(row, costs[row.map]) for row in self._rows]) / unit_times_us(cluster)

    def _costs(self, path: object, placement: Placement, file: PlacementFile, cluster: Cluster) -> tuple[StepCost, ...]:
        if placement.shape[:2] != cluster.shape[:2]:
            raise ClusterError(
                f"{path} is a map for {placement.num_nodes} nodes x {placement.gpus_per_node} GPUs, the cluster file "
                f"has {cluster.num_nodes} x {cluster.gpus_per_node}; calibrate each cluster by its own times"
            )
        sizes = sorted({row.step_tokens for row in self._rows if row.map == path})
        solved_for = file.evaluation
        (costs,) = evaluate_steps(
            self._trace,
            [placement],
            step_tokens=sizes,
            cluster=replace(cluster, slots_per_gpu=placement.slots_per_gpu),
            replica_choice=REPLICA_CHOICE if solved_for is None else solved_for.replica_choice,
            transport=TRANSPORT if solved_for is None else solved_for.transport,
            seed=self._seed,
            executor=self._executor,
        )
        return costs


def _step_of(row: MeasuredStep, costs: Sequence[StepCost]) -> tuple[float, ...]:
    """What the terms of the row's mean step take."""
    phases = dict.fromkeys(cost.phase for cost in costs)
    phase = row.phase or next(iter(phases))
    if row.phase is None and len(phases) > 1:
        raise InputError(
            f"{row.where} does not say its phase and the trace has {' and '.join(phases)}; add a column phase"
        )
    for cost in costs:
        if (cost.phase, cost.tokens_per_gpu) == (phase, row.step_tokens) and cost.figures is not None:
            return cost.figures.terms_us
    raise InputError(
        f"{row.where}: the trace has no full step of {row.step_tokens} tokens a GPU of {phase}; use a longer trace"
    )
