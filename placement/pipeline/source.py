"""What can be solved and measured: a trace, a trace that was counted, or counts of experts alone.

Each is a `Source`. A source is split into two sides, the requests to fit and those held out; a `Side` is counted for
the solvers, and maps are measured on the side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.choices import HOLDOUT
from placement.core.cluster import Cluster
from placement.core.model import Model
from placement.core.placement import Placement
from placement.cost.evaluate_sample import evaluate_sample
from placement.cost.evaluation import Evaluation, evaluate, evaluate_counts
from placement.errors import OptionError
from placement.solvers.options import Options
from placement.support.progress import Listener, Progress
from placement.traces.parts import Parts, parts_of
from placement.traces.split import held_out, parts_of_keys, split_requests
from placement.traces.trace import Trace
from placement.workload.count import count
from placement.workload.counted import CountedTrace, count_sides
from placement.workload.counts_file import ExpertCounts
from placement.workload.mixed import MixedWorkload
from placement.workload.profiles import profiles
from placement.workload.workload import SAMPLE_TOKENS, Workload

MOST_EXACT_TOKENS = 1 << 24  # a trace of so many tokens is measured on every token
MANY_REQUESTS = 256  # held out, chance is no matter

Homes = npt.NDArray[np.int32] | None  # [Q], home of each entry of a trace's requests; None: homes are random


class Side(ABC):
    """Requests to fit, or requests held out."""

    @abstractmethod
    def count(
        self, seed: int, executor: Executor, listener: Listener, sample_tokens: int = SAMPLE_TOKENS
    ) -> Workload | MixedWorkload:
        """What solvers are given of the requests, with a sample of at most `sample_tokens` tokens."""

    @abstractmethod
    def evaluate(
        self, maps: Sequence[Placement], cluster: Cluster, options: Options, executor: Executor, home_Q: Homes = None
    ) -> list[Evaluation]:
        """What the maps cost under the replica choice and the transport of the options."""

    @abstractmethod
    def profile_QLE(self, executor: Executor) -> npt.NDArray[np.integer] | None:
        """Assignments of each request, [Q, L, E]; None where there are MANY_REQUESTS or more, or none is named."""

    def of(self, parts: Parts, part: int) -> Side | None:
        """The requests that belong to a part; None where there are no tokens of the part, or parts are unknown."""
        return None


class Source(ABC):
    """What a solve is given.

    model       of the experts
    holdout     share of the requests that is held out where the caller names none
    has_tokens  single tokens can be read again, so that parts of the traffic can be told apart
    """

    model: Model
    holdout: float = HOLDOUT
    has_tokens = False

    @abstractmethod
    def split(self, holdout: float, seed: int, parts: Parts | None = None) -> tuple[Side, Side | None]:
        """The requests to fit and those held out; None: none are, which `holdout` 0 asks for."""

    def check(self, options: Options) -> None:  # noqa: B027 most sources say all that an objective needs
        """Raise OptionError if the objective needs what this source does not say."""

    def ready(self, holdout: float, seed: int, executor: Executor, listener: Listener) -> Source:
        """The source in the form to solve: a trace too large to measure on each token is counted first."""
        return self

    def parts(self, by: str) -> Parts:
        """Parts of the traffic, see `placement.traces.parts`. Raises OptionError where they are unknown."""
        return parts_of(self.trace(f"parts={by!r}"), by)

    def parts_of_profiles(self, parts: Parts, workload: Workload) -> npt.NDArray[np.bool_]:
        """Which request profiles of a workload of this source are of which part, bool [Q, W]."""
        return parts_of_keys(self.trace("parts"), parts, workload.profile_key_Q, workload.seed)

    def trace(self, what: str) -> Trace:
        """The trace. Raises OptionError where there is none, which says that `what` needs the trace."""
        raise OptionError(
            f"{what} needs the trace: counts do not say which requests belong together, nor which tokens are of one "
            f"request; give folders of expert-trace/1"
        )

    def size(self) -> tuple[int, int]:
        """Tokens and requests."""
        tokens_Q = self.trace("the number of requests").tokens_Q()
        return int(tokens_Q.sum()), int((tokens_Q > 0).sum())


def source_of(given: Trace | ExpertCounts | CountedTrace) -> Source:
    if isinstance(given, Trace):
        return TraceSource(given)
    return CountedSource(given) if isinstance(given, CountedTrace) else CountsSource(given)


class TraceSource(Source, Side):
    """A trace, or some requests of a trace: every token is measured."""

    has_tokens = True

    def __init__(self, tokens: Trace) -> None:
        self.tokens, self.model = tokens, tokens.model

    def ready(self, holdout: float, seed: int, executor: Executor, listener: Listener) -> Source:
        if self.tokens.num_tokens_stored <= MOST_EXACT_TOKENS:
            return self
        held_out_Q = held_out(self.tokens, holdout, seed) if holdout else None
        how: dict[str, Any] = {"holdout": holdout, "seed": seed, "held_out_Q": held_out_Q, "executor": executor}
        with counting_progress(self.tokens, listener) as progress:
            return CountedSource(count_sides(self.tokens, progress=progress, **how))

    def split(self, holdout: float, seed: int, parts: Parts | None = None) -> tuple[Side, Side | None]:
        if not holdout:
            return self, None
        train, rest = split_requests(self.tokens, holdout, seed, parts)
        return TraceSource(train), TraceSource(rest)

    def trace(self, what: str) -> Trace:
        return self.tokens

    def count(self, seed: int, executor: Executor, listener: Listener, sample_tokens: int = SAMPLE_TOKENS) -> Workload:
        how: dict[str, Any] = {"seed": seed, "sample_tokens": sample_tokens, "executor": executor}
        with counting_progress(self.tokens, listener) as progress:
            return count(self.tokens, progress=progress, **how)

    def evaluate(
        self, maps: Sequence[Placement], cluster: Cluster, options: Options, executor: Executor, home_Q: Homes = None
    ) -> list[Evaluation]:
        return evaluate(self.tokens, maps, home_Q=home_Q, **_rules(cluster, options, executor))

    def profile_QLE(self, executor: Executor) -> npt.NDArray[np.integer] | None:
        return profiles(self.tokens, MANY_REQUESTS, executor)

    def of(self, parts: Parts, part: int) -> Side | None:
        mine = parts.of(self.tokens, part)
        return TraceSource(mine) if mine.tokens_Q().any() else None


@dataclass(frozen=True, slots=True)
class WorkloadSide(Side):
    """One side of a counted trace: loads are exact, sends are measured on a sample of the tokens."""

    workload: Workload

    def count(self, seed: int, executor: Executor, listener: Listener, sample_tokens: int = SAMPLE_TOKENS) -> Workload:
        return self.workload.thinned(sample_tokens)

    def evaluate(
        self, maps: Sequence[Placement], cluster: Cluster, options: Options, executor: Executor, home_Q: Homes = None
    ) -> list[Evaluation]:
        return evaluate_sample(self.workload, maps, **_rules(cluster, options, executor))

    def profile_QLE(self, executor: Executor) -> npt.NDArray[np.integer] | None:
        profile_QLE = self.workload.profile_QLE
        return profile_QLE if 0 < len(profile_QLE) < MANY_REQUESTS else None


class CountedSource(Source):
    """A counted trace, which was split when it was counted."""

    def __init__(self, counted: CountedTrace) -> None:
        self.counted, self.model, self.holdout = counted, counted.model, counted.holdout

    def split(self, holdout: float, seed: int, parts: Parts | None = None) -> tuple[Side, Side | None]:
        train, rest = self.counted.split(holdout)
        return WorkloadSide(train), None if rest is None else WorkloadSide(rest)


class CountsSource(Source, Side):
    """Visits of each expert, in all or by each request: loads are known, sends are not."""

    def __init__(self, counts: ExpertCounts) -> None:
        self.counts, self.model = counts, counts.model

    def check(self, options: Options) -> None:
        if options.sends_count:
            raise OptionError(
                f"objective={options.objective!r} needs the experts that each token visits; counts do not say them and "
                f"sends are unknown; use --objective balance, or record a trace"
            )

    def split(self, holdout: float, seed: int, parts: Parts | None = None) -> tuple[Side, Side | None]:
        train, rest = (self.counts, None) if not holdout else self.counts.split(holdout, seed)
        return CountsSource(train), None if rest is None else CountsSource(rest)

    def size(self) -> tuple[int, int]:
        return self.counts.num_tokens, len(self.counts.count_QLE)

    def count(self, seed: int, executor: Executor, listener: Listener, sample_tokens: int = SAMPLE_TOKENS) -> Workload:
        return self.counts.workload(seed)

    def evaluate(
        self, maps: Sequence[Placement], cluster: Cluster, options: Options, executor: Executor, home_Q: Homes = None
    ) -> list[Evaluation]:
        return evaluate_counts(self.counts, maps, cluster=cluster, transport=options.transport)

    def profile_QLE(self, executor: Executor) -> npt.NDArray[np.integer] | None:
        return self.counts.count_QLE if len(self.counts.count_QLE) < MANY_REQUESTS else None


def _rules(cluster: Cluster, options: Options, executor: Executor) -> dict[str, Any]:
    rules = {"replica_choice": options.replica_choice, "transport": options.transport}
    return {"cluster": cluster, "executor": executor} | rules


@contextmanager
def counting_progress(trace: Trace, listener: Listener) -> Iterator[Callable[[int], None]]:
    """A function to be told how many tokens were counted; the listener hears how many of all tokens are done."""
    total, done = trace.num_tokens_stored, 0

    def counted(tokens: int) -> None:
        nonlocal done
        done += tokens
        listener(Progress(stage="count", done=done, total=total))

    yield counted
    listener(Progress(stage="count", done=total, total=total))
