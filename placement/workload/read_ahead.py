"""Tokens of a segment that are read together: rows of one shard, or of several small ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.support.batches import batches
from placement.traces import trace as traces
from placement.traces.storage.shard_reader import ShardReader
from placement.traces.trace import Span
from placement.workload.segment import Segment

MOST_FILES = 32  # open at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanBatch:
    """Consecutive spans, at most `CHUNK_TOKENS` tokens together, that are read together.

    A layer of a batch is counted at once: its pairs of experts are then in the processor's cache.

    numbers  number, in the segment, of the span that each of `spans` is cut from
    slices   where the tokens of each of `spans` are in the batch
    """

    model: Model
    numbers: tuple[int, ...]
    spans: tuple[Span, ...]
    slices: tuple[slice, ...]
    readers: tuple[ShardReader, ...]

    def column_T(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate(
            [reader.column(name, span.start, span.stop) for reader, span in zip(self.readers, self.spans, strict=True)]
        )

    def request_T(self, column_T: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Each token's request in the whole trace, of the column `request`. Raises TraceError where there is none."""
        pairs = zip(self.spans, self.slices, strict=True)
        return np.concatenate([span.request_T(column_T[mine]) for span, mine in pairs])

    def ids_TK(self, layer: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Expert ids in one layer, as the shards have them, unchecked; read into `out` if it is given."""
        if out is None:
            out = np.empty((self.slices[-1].stop, self.model.top_k), dtype=self.spans[0].shard.id_dtype)
        for reader, span, mine in zip(self.readers, self.spans, self.slices, strict=True):
            reader.layer("expert_ids", layer, span.start, span.stop, out=out[mine])
        return out

    def place_of(self, token: int) -> tuple[Span, int]:
        """The span and the row of its shard that a token of the batch was read from."""
        span, mine = next((span, mine) for span, mine in zip(self.spans, self.slices, strict=True) if token < mine.stop)
        return span, span.start + token - mine.start


def read_ahead(model: Model, segment: Segment) -> Iterator[SpanBatch]:
    """The whole segment in order; the files of a batch are open until the next one is asked for."""
    numbered = ((number, piece) for number, span in enumerate(segment) for piece in span.cut(traces.CHUNK_TOKENS))
    readers: dict[int, ShardReader] = {}
    try:
        for batch in batches(numbered, lambda one: one[1].num_tokens, traces.CHUNK_TOKENS, MOST_FILES):
            numbers, spans = zip(*batch, strict=True)
            for number in readers.keys() - set(numbers):
                readers.pop(number).close()
            for number, span in batch:
                if number not in readers:  # one that goes on keeps what it has fetched of its file
                    readers[number] = span.shard.reader()
            stops = accumulate(span.num_tokens for span in spans)
            yield SpanBatch(
                model=model,
                numbers=numbers,
                spans=spans,
                slices=tuple(slice(stop - span.num_tokens, stop) for span, stop in zip(spans, stops, strict=True)),
                readers=tuple(readers[number] for number in numbers),
            )
    finally:
        for reader in readers.values():
            reader.close()
