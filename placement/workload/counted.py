"""Both sides of a trace counted: all that a solve takes of it, in memory that does not grow with its length."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from operator import add

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.errors import OptionError
from placement.traces.split import below_share
from placement.traces.trace import Trace
from placement.workload.count import count_trace
from placement.workload.segment import Plan
from placement.workload.workload import PROFILE_REQUESTS, Workload

MEASURED_TOKENS = 65_536  # of each side: those that maps are measured on; a solve fits the first of them


@dataclass(frozen=True, slots=True, kw_only=True)
class CountedTrace:
    """Counts of the requests to fit (`train`) and of those held out. `a + b` counts both.

    holdout  share of the requests that is held out, drawn by a hash of seed and id: the same request is on the same
             side wherever it is counted. 0: none are, and `held_out` is None
    """

    holdout: float
    train: Workload
    held_out: Workload | None

    @property
    def model(self) -> Model:
        return self.train.model

    @property
    def seed(self) -> int:
        return self.train.seed

    @property
    def num_tokens(self) -> int:
        return sum(side.num_tokens for side in self.sides)

    @property
    def sides(self) -> tuple[Workload, ...]:
        return (self.train,) if self.held_out is None else (self.train, self.held_out)

    def __add__(self, other: CountedTrace) -> CountedTrace:
        return counted_of(self.holdout, tuple(map(add, self.sides, other.sides)))

    def split(self, holdout: float | None) -> tuple[Workload, Workload | None]:
        """(what to fit, what is held out); `holdout` is that of the counts or, where all is to be fitted, 0."""
        if holdout == 0 and self.held_out is not None:
            return self.train + self.held_out, None
        if holdout not in (None, self.holdout):
            raise OptionError(
                f"holdout={holdout} is not that of the counts, {self.holdout}: requests were held out when they were "
                f"counted; leave it out, or give 0 to fit all"
            )
        if self.held_out is None or not self.held_out.num_tokens:
            return self.train, None
        return self.train, self.held_out


def counted_of(holdout: float, sides: tuple[Workload, ...]) -> CountedTrace:
    return CountedTrace(holdout=holdout, train=sides[0], held_out=sides[1] if len(sides) > 1 else None)


def plan_of(trace: Trace, *, holdout: float, seed: int, held_out_Q: npt.NDArray[np.bool_] | None = None) -> Plan:
    """Count all of the trace, requests that are held out for a side of their own. Raises OptionError.

    held_out_Q: which requests these are, bool [Q]; None: those whose hash is below the share, so that counts add up.
    """
    if not 0 <= holdout < 1:
        raise OptionError(f"holdout={holdout} must be at least 0 and less than 1")
    plan = Plan.of(trace, seed=seed, sample_tokens=MEASURED_TOKENS, profile_requests=PROFILE_REQUESTS)
    if not holdout:
        return plan
    held_out_Q = below_share(plan.key_Q, holdout) if held_out_Q is None else held_out_Q
    return replace(plan, side_Q=np.where(plan.side_Q < 0, -1, held_out_Q).astype(np.int8), num_sides=2)


def count_sides(
    trace: Trace,
    *,
    holdout: float,
    seed: int = 0,
    held_out_Q: npt.NDArray[np.bool_] | None = None,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
) -> CountedTrace:
    """Count the whole trace in one pass; the answer does not depend on the executor. Raises TraceError, OptionError.

    held_out_Q: as of `plan_of`. progress is called with the number of tokens of each segment that was counted.
    """
    plan = plan_of(trace, holdout=holdout, seed=seed, held_out_Q=held_out_Q)
    return counted_of(holdout, count_trace(plan, trace, executor, progress))
