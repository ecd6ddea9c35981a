"""What one task counts: some shards, or a part of a large one, and for which side each of their tokens counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.traces import trace as traces
from placement.traces.format import Shard, id_dtype
from placement.traces.trace import Cut, Trace
from placement.workload.workload import pairs_bytes

SEGMENT_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows `start:stop` of a shard, whose requests are `listed` ones from number `offset` on."""

    shard: Shard
    start: int
    stop: int
    offset: int
    listed: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    def blocks(self) -> Iterator[tuple[int, int]]:
        """The rows in pieces that are read together: (start, stop)."""
        for start in range(self.start, self.stop, traces.CHUNK_TOKENS):
            yield start, min(start + traces.CHUNK_TOKENS, self.stop)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is counted of a trace.

    key_Q      uint64 [Q], key of every request, see `placement.traces.split.request_keys`
    side_Q     int8 [Q], the side that its tokens count for, or -1
    num_sides  how many sides there are
    cut        which of the requests' tokens count; None: all
    """

    model: Model
    seed: int
    sample_tokens: int
    profile_requests: int
    key_Q: npt.NDArray[np.uint64]
    side_Q: npt.NDArray[np.int8]
    num_sides: int
    cut: Cut | None = None

    def segment_bytes(self) -> int:
        """Memory that counting one segment takes, about, with what it answers."""
        layers, experts = self.model.num_layers, self.model.num_experts
        token = layers * self.model.top_k * np.dtype(id_dtype(experts)).itemsize + 16
        side = pairs_bytes(self.model) + self.profile_requests * layers * experts * 4 + 4 * self.sample_tokens * token
        return self.num_sides * side + traces.CHUNK_TOKENS * (8 * self.model.top_k + 64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Spans that one task counts: a name for each file and, of all requests, 9 bytes."""

    plan: Plan
    spans: tuple[Span, ...]

    @property
    def num_tokens(self) -> int:
        return sum(span.num_tokens for span in self.spans)


def spans_of(trace: Trace) -> Iterator[Span]:
    """The whole trace in order, in spans of at most SEGMENT_TOKENS: shards, or parts of larger ones."""
    for shard, offset, listed in zip(trace.shards, trace.offsets, trace.counts, strict=True):
        for start in range(0, shard.num_tokens, SEGMENT_TOKENS):
            stop = min(start + SEGMENT_TOKENS, shard.num_tokens)
            yield Span(shard=shard, start=start, stop=stop, offset=offset, listed=listed)


def segments_of(plan: Plan, spans: Iterable[Span]) -> Iterator[Segment]:
    """Consecutive spans that have at most SEGMENT_TOKENS together."""
    waiting: list[Span] = []
    num_tokens = 0
    for span in spans:
        if waiting and num_tokens + span.num_tokens > SEGMENT_TOKENS:
            yield Segment(plan=plan, spans=tuple(waiting))
            waiting, num_tokens = [], 0
        waiting.append(span)
        num_tokens += span.num_tokens
    if waiting:
        yield Segment(plan=plan, spans=tuple(waiting))
