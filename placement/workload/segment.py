"""What one task counts: some shards, or a part of a large one, and for which side each of their tokens counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.support.batches import batches
from placement.traces import trace as traces
from placement.traces.format import id_dtype
from placement.traces.split import request_keys
from placement.traces.trace import Cut, Span, Trace
from placement.workload.workload import pairs_bytes

SEGMENT_TOKENS = 1 << 22


Segment = tuple[Span, ...]  # what one task counts: a name for each file and, of all requests, 9 bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is counted of a trace.

    key_Q      uint64 [Q], key of every request, see `placement.traces.split.request_keys`
    side_Q     int8 [Q], the side that its tokens count for, or -1
    num_sides  how many sides there are
    cut        which of the requests' tokens count; None: all
    drafts     whether drafts that were rejected count
    """

    model: Model
    seed: int
    sample_tokens: int
    profile_requests: int
    key_Q: npt.NDArray[np.uint64]
    side_Q: npt.NDArray[np.int8]
    num_sides: int
    cut: Cut | None
    drafts: bool

    @staticmethod
    def of(trace: Trace, *, seed: int, sample_tokens: int, profile_requests: int) -> Plan:
        """Count the kept tokens of the trace for one side. Raises OptionError."""
        kept_Q = np.ones(len(trace.requests), dtype=bool) if trace.selected_Q is None else trace.selected_Q
        return Plan(
            model=trace.model,
            seed=seed,
            sample_tokens=sample_tokens,
            profile_requests=profile_requests,
            key_Q=request_keys([request.id for request in trace.requests], seed),
            side_Q=np.where(kept_Q, 0, -1).astype(np.int8),
            num_sides=1,
            cut=trace.cut,
            drafts=trace.drafts,
        )

    def segment_bytes(self) -> int:
        """Memory that counting one segment takes, about, with what it answers."""
        layers, experts = self.model.num_layers, self.model.num_experts
        token = layers * self.model.top_k * np.dtype(id_dtype(experts)).itemsize + 16
        side = pairs_bytes(self.model) + self.profile_requests * layers * experts * 4 + 4 * self.sample_tokens * token
        return self.num_sides * side + traces.CHUNK_TOKENS * (8 * self.model.top_k + 64)


def spans_of(trace: Trace) -> Iterator[Span]:
    """The whole trace in order, in spans of at most SEGMENT_TOKENS: shards, or parts of larger ones."""
    return (piece for span in trace.spans for piece in span.cut(SEGMENT_TOKENS))


def segments_of(spans: Iterable[Span]) -> Iterator[Segment]:
    """Consecutive spans that have ids of one type, and at most SEGMENT_TOKENS together."""
    for _, alike in groupby(spans, key=lambda span: span.shard.id_dtype):
        yield from batches(alike, lambda span: span.num_tokens, SEGMENT_TOKENS)
