"""Tokens of a segment that are read together: rows of one shard, or of several small ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.traces import trace as traces
from placement.traces.format import id_dtype
from placement.traces.storage.shard_reader import ShardReader
from placement.traces.trace import requests_of
from placement.workload.segment import Plan, Segment, Span

MOST_FILES = 32  # open at a time


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows `start:stop` of the shard of the segment's span `number`; `at` is where they begin in the stretch."""

    number: int
    span: Span
    reader: ShardReader
    start: int
    stop: int
    at: int

    @property
    def tokens(self) -> slice:
        return slice(self.at, self.at + self.stop - self.start)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretch:
    """Consecutive parts, at most `CHUNK_TOKENS` together unless it is one.

    A layer of so many tokens is counted at once: its pairs of experts are then in the processor's cache.
    """

    plan: Plan
    parts: tuple[Part, ...]

    @property
    def num_tokens(self) -> int:
        last = self.parts[-1]
        return last.at + last.stop - last.start

    def request_T(self) -> npt.NDArray[np.int32]:
        """Each token's request in the whole trace. Raises TraceError where there is no such request."""
        return np.concatenate([self._requests(part) + np.int32(part.span.offset) for part in self.parts])

    def column_T(self, name: str) -> npt.NDArray[Any]:
        return np.concatenate([part.reader.column(name, part.start, part.stop) for part in self.parts])

    def ids_TK(self, layer: int, out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Expert ids in one layer, uint8 or uint16, unchecked; read into `out` if it is given."""
        if out is None:
            model = self.plan.model
            out = np.empty((self.num_tokens, model.top_k), dtype=id_dtype(model.num_experts))
        for part in self.parts:
            part.reader.layer("expert_ids", layer, part.start, part.stop, out=out[part.tokens])
        return out

    def part_of(self, token: int) -> Part:
        return next(part for part in self.parts if token < part.tokens.stop)

    def _requests(self, part: Part) -> npt.NDArray[np.int32]:
        return requests_of(part.span.shard, part.reader.column("request", part.start, part.stop), part.span.listed)


def stretches(segment: Segment) -> Iterator[Stretch]:
    """The whole segment in order; the files of a stretch are open until the next one is asked for."""
    readers: dict[int, ShardReader] = {}
    try:
        for rows in _gathered(segment):
            for number in readers.keys() - {number for number, _, _ in rows}:
                readers.pop(number).close()
            parts: list[Part] = []
            for number, start, stop in rows:
                span = segment.spans[number]
                if number not in readers:  # one that goes on keeps what it has fetched of its file
                    readers[number] = span.shard.reader()
                at = parts[-1].tokens.stop if parts else 0
                parts.append(Part(number=number, span=span, reader=readers[number], start=start, stop=stop, at=at))
            yield Stretch(plan=segment.plan, parts=tuple(parts))
    finally:
        for reader in readers.values():
            reader.close()


def _gathered(segment: Segment) -> Iterator[list[tuple[int, int, int]]]:
    """Span, first and last row of the parts of each stretch."""
    waiting: list[tuple[int, int, int]] = []
    num_tokens = 0
    for number, span in enumerate(segment.spans):
        for start, stop in span.blocks():
            if waiting and (num_tokens + stop - start > traces.CHUNK_TOKENS or len(waiting) == MOST_FILES):
                yield waiting
                waiting, num_tokens = [], 0
            waiting.append((number, start, stop))
            num_tokens += stop - start
    if waiting:
        yield waiting
