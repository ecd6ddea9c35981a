"""One decision: keep the map, or change it, because what that saves is more than what it costs."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from placement.analysis.watch.drift import Drift, check_test, drift_test
from placement.analysis.watch.unseen import fitted_and_unseen
from placement.analysis.watch.window import Window
from placement.core.choices import DRIFT_LEVEL, HORIZON_STEPS, MIN_EFFECT
from placement.core.cluster import Cluster
from placement.core.migration import MigrationPlan, check_fits, migration_plan
from placement.core.placement import Placement
from placement.cost.evaluation import even_load
from placement.cost.step_time import STEP_TOKENS_PER_GPU, Work, active_experts, term_times_us
from placement.errors import OptionError
from placement.pipeline.solve_layers import solve_workload
from placement.solvers.layer_problems import layer_problem
from placement.solvers.options import Options
from placement.support.parallel import make_executor
from placement.workload.workload import Workload

STEADY, NOT_WORTH_IT, CHANGE = "steady", "not-worth-it", "change"
MOVED = 3  # a change moves at most one slot in so many: more moves gain little
GROWN = 2  # a map is judged anew when the window has so many times its training tokens


Solve = Callable[[Workload], Placement]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What is to be done, and why. Figures are None where a test before them ended the matter.

    Attributes:
        verdict: `steady` (no drift), `not-worth-it` (the gain is no more than the cost) or `change` (to `placement`).
        now_us: Modelled step time of the map in use, on half of the window's requests that it was not fitted to.
        new_us: Modelled step time of a map that was fitted to all other requests, on the same half.
        gain_ms: What the horizon's steps save.
        cost_ms: What the copies of weights take, during which nothing is served.
        window: The window without what came before the drift: what the proposal is fitted to, and what to go on with.
        placement: The proposal.
        plan: The copies that lead to the proposal.
    """

    verdict: str
    drift: Drift | None
    window: Window
    now_us: float | None = None
    new_us: float | None = None
    gain_ms: float | None = None
    cost_ms: float | None = None
    placement: Placement | None = None
    plan: MigrationPlan | None = None

    def summary(self) -> dict[str, Any]:
        """Plain data with the same keys everywhere."""
        figures = {"now_us": self.now_us, "new_us": self.new_us, "gain_ms": self.gain_ms, "cost_ms": self.cost_ms}
        return {
            "verdict": self.verdict,
            "drift": None if self.drift is None else self.drift.summary(),
            **{name: None if value is None else round(value, 3) for name, value in figures.items()},
            "moves": None if self.plan is None else self.plan.num_moves,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """The map in use and the traffic that it was fitted to; pure: `step` says what to do, `after` is what follows.

    Attributes:
        reference: The window that the map was fitted to; None: unknown, then the gain alone decides.
        options: Options of the search; without a limit of moves each change moves at most one slot in MOVED. The step
            time judges, whatever the objective.
        horizon_steps: Steps for which a new map is expected to serve: they have to pay for the copies.
        level: Level of the test of drift, see `drift_test`.
        min_effect: Least effect of the test of drift, see `drift_test`.
    """

    cluster: Cluster
    current: Placement
    reference: Workload | None = None
    options: Options = field(default_factory=lambda: Options(objective="time", bound="none"))
    horizon_steps: int = HORIZON_STEPS
    tokens_per_gpu: int = STEP_TOKENS_PER_GPU
    level: float = DRIFT_LEVEL
    min_effect: float = MIN_EFFECT

    def __post_init__(self) -> None:
        check_fits(self.current, (self.reference or self.current).model, self.cluster)
        check_test(self.level, self.min_effect)
        for name, value in (("horizon_steps", self.horizon_steps), ("tokens_per_gpu", self.tokens_per_gpu)):
            if value < 1:
                raise OptionError(f"{name}={value} must be at least 1")

    @property
    def search(self) -> Options:
        """`options`, with the moves limited."""
        if self.options.moves_limited:
            return self.options
        return replace(self.options, max_moves=-(-self.current.phy2log_LP.size // MOVED))

    def step(self, window: Window, *, workers: int | None = None, solve: Solve | None = None) -> Decision:
        """Decide on the present window.

        Deterministic in (self, window) unless the options have a time limit, whatever the number of workers.

        Args:
            solve: Makes the proposal, a change of `current`, of the window's traffic; None: it is made here.

        Raises:
            MapError: The window is of another model. (`solve_workload` raises further errors.)
        """
        traffic = window.workload()
        check_fits(self.current, traffic.model, self.cluster)
        drift = None
        if self.reference is not None:
            drift = drift_test(
                self.reference, window.buckets, level=self.level, min_effect=self.min_effect, seed=self.options.seed
            )
            if drift.drifted:
                window = window.without_oldest(drift.old_buckets)
                traffic = window.workload()
            elif traffic.num_tokens < GROWN * self.reference.num_tokens:
                return Decision(verdict=STEADY, drift=drift, window=window)
        kept = Decision(verdict=NOT_WORTH_IT, drift=drift, window=window)
        known_Q = None if self.reference is None else self.reference.profile_key_Q
        fitted, unseen = fitted_and_unseen(traffic, known_Q)
        if not all(len(side.sample_key_S) and len(side.profile_key_Q) for side in (fitted, unseen)):
            return kept
        with make_executor(workers) as executor:
            twin = self._solve(fitted, executor)
            now_us, new_us = (self.step_us(unseen, one) for one in (self.current, twin))
            gain_ms = (now_us - new_us) * self.horizon_steps / 1e3
            kept = replace(kept, now_us=now_us, new_us=new_us, gain_ms=gain_ms)
            if gain_ms <= 0:
                return kept
            placement = self._solve(traffic, executor) if solve is None else solve(traffic)
        check_fits(placement, traffic.model, self.cluster)
        plan = migration_plan(self.current, placement, self.cluster)
        kept = replace(kept, cost_ms=plan.time_ms())
        if not plan.num_moves or gain_ms <= plan.time_ms():
            return kept
        return replace(kept, verdict=CHANGE, placement=placement, plan=plan)

    def after(self, decision: Decision) -> Planner:
        """The planner once the decision was followed."""
        if decision.placement is not None:
            return replace(self, current=decision.placement, reference=decision.window.workload())
        return replace(self, reference=decision.window.workload()) if self.reference is None else self

    def step_us(self, workload: Workload, placement: Placement) -> float:
        """Modelled microseconds of a step of this traffic under a map."""
        scores = [
            layer_problem(workload, self.cluster, self.options, layer).score(row)
            for layer, row in enumerate(placement.phy2log_LP)
        ]
        visits_LE = workload.load_LE / max(workload.num_tokens, 1)
        visits_LP = np.stack([even_load(*one) for one in zip(visits_LE, placement.phy2log_LP, strict=True)])
        work = Work(
            busiest=self.tokens_per_gpu * np.array([score.busiest_sends for score in scores]),
            copies=self.tokens_per_gpu * np.array([score.sends for score in scores]),
            load=self.tokens_per_gpu * visits_LE.sum(axis=1) * np.array([score.imbalance for score in scores]),
            experts=active_experts(visits_LP, self.cluster, self.tokens_per_gpu),
        )
        return float(term_times_us(self.cluster, work).sum())

    def _solve(self, workload: Workload, executor: Executor) -> Placement:
        maps, _ = solve_workload(
            workload, self.cluster, self.search, current=self.current, executor=executor, workers=None
        )
        return maps[self.options.solver]
