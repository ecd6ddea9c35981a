"""Captures as what is solved and measured: each is split, counted and measured by itself."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from placement.core.choices import CAPTURES, HOLDOUT
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.cost.evaluation import Evaluation
from placement.errors import OptionError, TraceError
from placement.pipeline.captures import Captures, Given
from placement.pipeline.source import CountedSource, Homes, Side, Source, TraceSource, source_of
from placement.solvers.options import Options
from placement.support.progress import Listener
from placement.traces.parts import Parts
from placement.traces.split import draw
from placement.workload.mixed import MixedWorkload
from placement.workload.workload import SAMPLE_TOKENS

Floats = npt.NDArray[np.float64]


class CapturesSource(Source):
    """Captures, each split, counted and measured by itself."""

    def __init__(self, sources: Sequence[Source], names: Sequence[str], weight_W: Sequence[float]) -> None:
        self.sources, self.names, self.weight_W = tuple(sources), tuple(names), tuple(weight_W)
        self.model = sources[0].model
        counted = [source.holdout for source in sources if isinstance(source, CountedSource)]
        self.holdout = counted[0] if counted else HOLDOUT

    def check(self, options: Options) -> None:
        for source in self.sources:
            source.check(options)

    def ready(self, holdout: float, seed: int, executor: Executor, listener: Listener) -> Source:
        ready = [source.ready(holdout, seed, executor, listener) for source in self.sources]
        return CapturesSource(ready, self.names, self.weight_W)

    def parts(self, by: str) -> Parts:
        if by != CAPTURES:
            raise OptionError(f"parts={by!r} is of one trace; several captures are parts themselves: leave --parts out")
        return Parts(by=by, names=self.names, part_Q=np.empty(0, dtype=np.int32))

    def split(self, holdout: float, seed: int, parts: Parts | None = None) -> tuple[Side, Side | None]:
        sides = [
            source.split(holdout, seed) if both is None else both
            for source, both in zip(self.sources, _split_traces(self.sources, holdout, seed), strict=True)
        ]
        train = CapturesSide(tuple(one for one, _ in sides), self.weight_W)
        if all(rest is None for _, rest in sides):
            return train, None
        return train, CapturesSide(tuple(rest for _, rest in sides), self.weight_W)


def _split_traces(sources: Sequence[Source], holdout: float, seed: int) -> list[tuple[Side, Side | None] | None]:
    """Both sides of every trace, None for other captures: a request that is in several is on one side of all."""
    traces = [source.tokens if isinstance(source, TraceSource) else None for source in sources]
    if not holdout:
        return [None] * len(sources)
    present = [None if trace is None else np.flatnonzero(trace.tokens_Q() > 0) for trace in traces]
    ids, part_Q = [], []
    for part, (trace, kept) in enumerate(zip(traces, present, strict=True)):
        if trace is not None and kept is not None:
            ids += [trace.requests[q].id for q in kept.tolist()]
            part_Q += [part] * len(kept)
    drawn_Q = draw(ids, holdout, seed, np.array(part_Q)) if ids else np.zeros(0, dtype=bool)
    sides: list[tuple[Side, Side | None] | None] = []
    for trace, kept in zip(traces, present, strict=True):
        if trace is None or kept is None:
            sides.append(None)
            continue
        out_Q, kept_Q = (np.zeros(len(trace.requests), dtype=bool) for _ in range(2))
        kept_Q[kept] = True
        out_Q[kept], drawn_Q = drawn_Q[: len(kept)], drawn_Q[len(kept) :]
        if not (kept_Q & ~out_Q).any():
            raise TraceError("a capture has only requests that are held out as those of another; give --holdout 0")
        sides.append(
            (TraceSource(trace.select(kept_Q & ~out_Q)), TraceSource(trace.select(out_Q)) if out_Q.any() else None)
        )
    return sides


@dataclass(frozen=True, slots=True)
class CapturesSide(Side):
    """One side of every capture; None: the capture has no such side, as one total of which nothing can be held out."""

    sides: tuple[Side | None, ...]
    weight_W: tuple[float, ...]

    def count(
        self, seed: int, executor: Executor, listener: Listener, sample_tokens: int = SAMPLE_TOKENS
    ) -> MixedWorkload:
        parts = [side.count(seed, executor, listener, sample_tokens) for side in self.sides if side is not None]
        whole = tuple(part for one in parts for part in (one.parts if isinstance(one, MixedWorkload) else (one,)))
        return MixedWorkload(parts=whole, weight_W=self.weight_W)

    def evaluate(
        self, maps: Sequence[Placement], cluster: Cluster, options: Options, executor: Executor, home_Q: Homes = None
    ) -> list[Evaluation]:
        present = [(side, w) for side, w in zip(self.sides, self.weight_W, strict=True) if side is not None]
        total = sum(w for _, w in present)
        answers = [side.evaluate(maps, cluster, options, executor) for side, _ in present]
        mean = partial(_mean, weight_W=[w / total for _, w in present])
        return [mean(list(one)) for one in zip(*answers, strict=True)]

    def of(self, parts: Parts, part: int) -> Side | None:
        return self.sides[part]

    def profile_QLE(self, executor: Executor) -> None:
        """Several captures are no sample of one kind of traffic."""


def _mean(answers: Sequence[Evaluation], weight_W: Sequence[float]) -> Evaluation:
    """What a map costs on the mixture of the captures: as many tokens as all have, shared by weight."""
    tokens = sum(answer.num_tokens for answer in answers)

    def mean(values: Iterable[Floats]) -> Floats:
        return np.asarray(sum(w * value for w, value in zip(weight_W, values, strict=True)))

    sampled = [answer for answer in answers if answer.sampled_tokens is not None]
    errors = [(w, a.sends_error) for w, a in zip(weight_W, answers, strict=True) if a.sampled_tokens is not None]
    known = [(w, error) for w, error in errors if error is not None]
    return replace(
        answers[0],
        num_tokens=tokens,
        assignments_L=mean(answer.assignments_L for answer in answers),
        node_sends_L=mean(answer.node_sends_L for answer in answers),
        rank_sends_L=mean(answer.rank_sends_L for answer in answers),
        remote_assignments_L=mean(answer.remote_assignments_L for answer in answers),
        sends_L=mean(answer.sends_L for answer in answers),
        links_LNN=mean(answer.links_LNN for answer in answers),
        into_LG=mean(answer.into_LG for answer in answers),
        load_LP=tokens * mean(map(_loads_of_a_token, answers)),
        sampled_tokens=sum(a.sampled_tokens or a.num_tokens for a in answers) if sampled else None,
        sends_error=float(np.sqrt(sum((w * e) ** 2 for w, e in known)))
        if errors and len(known) == len(errors)
        else None,
    )


def _loads_of_a_token(answer: Evaluation) -> Floats:
    """Assignments that each slot serves of one token, float64 [L, P]; of counts every layer has as many tokens."""
    total_L1 = answer.load_LP.sum(axis=1, keepdims=True)
    share_LP = np.divide(answer.load_LP, total_L1, out=np.zeros_like(answer.load_LP), where=total_L1 > 0)
    return np.asarray(share_LP * answer.assignments_L[:, None])


def any_source(given: Given | Captures) -> Source:
    """What is solved and measured."""
    if not isinstance(given, Captures):
        return source_of(given)
    sources = [source_of(capture.given) for capture in given.captures]
    return CapturesSource(sources, [capture.name for capture in given.captures], given.weight_W)
