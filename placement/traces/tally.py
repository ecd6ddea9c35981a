"""Counting a segment: one pass over its files, in memory that does not grow with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.traces import counting
from placement.traces.checked import fault_error
from placement.traces.format import id_dtype
from placement.traces.segment import Plan, Segment, Span
from placement.traces.shard_reader import ShardReader
from placement.traces.trace import requests_of
from placement.workload import Workload, smallest_keys

COLUMNS = ("request", "position", "phase")
_WORD = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentCounts:
    """The workload of every side, and of every span what it was counted from.

    hashes    of what was read, see `hash_span`
    requests  how many of its folder's requests it needs: 1 + its largest request index
    stats     `Shard.stat` before it was read
    """

    sides: tuple[Workload, ...]
    hashes: tuple[int, ...]
    requests: tuple[int, ...]
    stats: tuple[tuple[int, ...], ...]


def count_segment(segment: Segment) -> SegmentCounts:
    """Count the tokens of every side. Raises TraceError on ids that are out of range or twice in a top-k set."""
    stats = tuple(span.shard.stat() for span in segment.spans)
    tally = _Tally(segment)
    hashes = []
    for span in segment.spans:
        with span.shard.reader() as reader:
            hashes.append(sum(tally.count(span, reader, *rows) for rows in span.blocks()) % 2**64)
    return SegmentCounts(sides=tally.workloads(), hashes=tuple(hashes), requests=tally.requests, stats=stats)


def hash_span(span: Span, num_layers: int) -> int:
    """A hash of all that is counted of the span, 64 bits: it tells that a file was changed, not that it was forged."""
    total = 0
    with span.shard.reader() as reader:
        for start, stop in span.blocks():
            total += _hash_columns([reader.column(name, start, stop) for name in COLUMNS], start)
            for layer in range(num_layers):
                total += _hash(reader.layer("expert_ids", layer, start, stop), layer, start)
    return total % 2**64


class _Tally:
    """What is counted, as it grows.

    pairs_LZEE   uint32, pairs of experts by side (Z)
    profile_QLE  uint32, requests whose profile is kept: those of a side together, their keys ascending
    row_Q        int32 [Q], row of every request of the plan among them, or -1
    """

    def __init__(self, segment: Segment) -> None:
        plan, model = segment.plan, segment.plan.model
        self.plan = plan
        self.count_sets = counting.set_counter(model.top_k)
        self.tokens_Z = np.zeros(plan.num_sides, dtype=np.int64)
        shape = (model.num_layers, plan.num_sides, model.num_experts, model.num_experts)
        self.pairs_LZEE = np.zeros(shape, dtype=np.uint32)
        self.samples = [_Sample(plan) for _ in range(plan.num_sides)]
        present_Q, self.requests = _present(segment)
        side_Q = np.where(present_Q, plan.side_Q, -1)
        self.kept = [np.unique(plan.key_Q[side_Q == side])[: plan.profile_requests] for side in range(plan.num_sides)]
        self.first = np.cumsum([0, *(len(key_Q) for key_Q in self.kept)]).tolist()
        self.row_Q = np.full(len(plan.key_Q), -1, dtype=np.int32)
        for side, key_Q in enumerate(self.kept):
            mine = np.flatnonzero((side_Q == side) & np.isin(plan.key_Q, key_Q))
            self.row_Q[mine] = self.first[side] + np.searchsorted(key_Q, plan.key_Q[mine])
        self.profile_QLE = np.zeros((self.first[-1], model.num_layers, model.num_experts), dtype=np.uint32)

    def count(self, span: Span, reader: ShardReader, start: int, stop: int) -> int:
        """Count rows `start:stop` of the span's shard; returns the hash of what was read."""
        plan, num_layers = self.plan, self.plan.model.num_layers
        columns = [reader.column(name, start, stop) for name in COLUMNS]
        total = _hash_columns(columns, start)
        request_T, position_T, phase_T = columns
        request_T = requests_of(span.shard, request_T, span.listed) + np.int32(span.offset)
        owner_T, side_T, row_T = counting.look_up(request_T, plan.key_Q, plan.side_Q, self.row_Q)
        if plan.cut is not None:
            side_T[~plan.cut.keeps(phase_T if plan.cut.column == "phase" else position_T, request_T)] = -1
        mine_ZT = [side_T == side for side in range(plan.num_sides)]
        self.tokens_Z += [np.count_nonzero(mine_T) for mine_T in mine_ZT]
        ends = [reader.layer("expert_ids", layer, start, stop) for layer in sorted({0, num_layers - 1})]
        key_T = counting.token_keys(owner_T, position_T, phase_T, np.concatenate(ends, axis=1))
        for sample, mine_T in zip(self.samples, mine_ZT, strict=True):
            sample.begin(key_T, owner_T, mine_T)
        ids_TK = ends[0]
        for layer in range(num_layers):
            reader.layer("expert_ids", layer, start, stop, out=ids_TK)
            total += _hash(ids_TK, layer, start)
            self._count_layer(span, start, layer, ids_TK, side_T, row_T)
            for sample in self.samples:
                sample.take(layer, ids_TK)
        for sample in self.samples:
            sample.end()
        return total

    def _count_layer(
        self,
        span: Span,
        start: int,
        layer: int,
        ids_TK: npt.NDArray[Any],
        side_T: npt.NDArray[np.int8],
        row_T: npt.NDArray[np.int32],
    ) -> None:
        """The kernel trusts the ids, so what it cannot be given is looked for before and after it."""
        model = self.plan.model
        pairs_ZEE = self.pairs_LZEE[layer]
        fits = int(ids_TK.max()) < model.num_experts
        if fits:
            self.count_sets(ids_TK, side_T, row_T, pairs_ZEE, self.profile_QLE, layer)
            fits = model.top_k == 1 or not pairs_ZEE.diagonal(axis1=1, axis2=2).any()
        if fits:
            return
        counted = np.flatnonzero(side_T >= 0)
        fault, row = counting.check_ids(ids_TK[counted], model.num_experts)
        if fault != counting.OK:
            token = int(counted[row])
            raise fault_error(model, span.shard.path, start + token, layer, ids_TK[token].tolist(), fault)
        np.minimum(ids_TK, model.num_experts - 1, out=ids_TK)  # only tokens that do not count have others
        self.count_sets(ids_TK, side_T, row_T, pairs_ZEE, self.profile_QLE, layer)

    def workloads(self) -> tuple[Workload, ...]:
        plan, model = self.plan, self.plan.model
        answer = []
        for side, sample in enumerate(self.samples):
            sample.settle()
            pairs_LEE = self.pairs_LZEE[:, side]
            coact_LEE = pairs_LEE.astype(np.int64)
            coact_LEE += pairs_LEE.transpose(0, 2, 1)
            # every expert of a token is in K - 1 pairs; where there are none, twice on the diagonal
            load_LE = coact_LEE.sum(axis=2) // (model.top_k - 1 or 2)
            if model.top_k == 1:
                coact_LEE[:] = 0
            answer.append(
                Workload(
                    model=model,
                    num_tokens=int(self.tokens_Z[side]),
                    seed=plan.seed,
                    sample_tokens=plan.sample_tokens,
                    profile_requests=plan.profile_requests,
                    load_LE=load_LE,
                    coact_LEE=coact_LEE,
                    sample_key_S=sample.key_S,
                    sample_owner_S=sample.owner_S,
                    sample_ids_SLK=sample.ids_SLK,
                    profile_key_Q=self.kept[side],
                    profile_QLE=self.profile_QLE[self.first[side] : self.first[side + 1]],
                )
            )
        return tuple(answer)


class _Sample:
    """The tokens of a side with the smallest keys, and those of a block that may be among them."""

    def __init__(self, plan: Plan) -> None:
        model = plan.model
        self.size = plan.sample_tokens
        self.key_S = np.empty(0, dtype=np.uint64)
        self.owner_S = np.empty(0, dtype=np.uint64)
        shape = (0, model.num_layers, model.top_k)
        self.ids_SLK: npt.NDArray[Any] = np.empty(shape, dtype=id_dtype(model.num_experts))
        self._waiting: list[tuple[npt.NDArray[Any], ...]] = []
        self._num_waiting = 0
        self._rows = np.empty(0, dtype=np.int64)

    def begin(
        self, key_T: npt.NDArray[np.uint64], owner_T: npt.NDArray[np.uint64], mine_T: npt.NDArray[np.bool_]
    ) -> None:
        if len(self.key_S) >= self.size:
            mine_T = mine_T & (key_T <= self.key_S[-1])
        rows = np.flatnonzero(mine_T)
        if len(rows) > self.size:
            key_R = key_T[rows]
            rows = rows[key_R <= np.partition(key_R, self.size - 1)[self.size - 1]]
        self._rows = rows
        new = np.empty((len(rows), *self.ids_SLK.shape[1:]), dtype=self.ids_SLK.dtype)
        self._waiting.append((key_T[rows], owner_T[rows], new))

    def take(self, layer: int, ids_TK: npt.NDArray[Any]) -> None:
        counting.take_rows(ids_TK, self._rows, self._waiting[-1][2], layer)

    def end(self) -> None:
        """Choose once as much has come together as the sample holds."""
        self._num_waiting += len(self._rows)
        if self._num_waiting >= self.size:
            self.settle()

    def settle(self) -> None:
        columns = zip((self.key_S, self.owner_S, self.ids_SLK), *self._waiting, strict=True)
        key_S, owner_S, ids_SLK = (np.concatenate(column) for column in columns)
        self.key_S, self.owner_S, self.ids_SLK = smallest_keys(key_S, owner_S, ids_SLK, self.size)
        self._waiting, self._num_waiting = [], 0


def _present(segment: Segment) -> tuple[npt.NDArray[np.bool_], tuple[int, ...]]:
    """Which requests have tokens in the segment that count, bool [Q]; 1 + the largest request index of every span."""
    plan = segment.plan
    present_Q = np.zeros(len(plan.key_Q), dtype=bool)
    most = []
    for span in segment.spans:
        largest = -1
        with span.shard.reader() as reader:
            for start, stop in span.blocks():
                request_T = requests_of(span.shard, reader.column("request", start, stop), span.listed)
                largest = max(largest, int(request_T.max()))
                request_T = request_T + np.int32(span.offset)
                if plan.cut is not None:
                    request_T = request_T[plan.cut.keeps(reader.column(plan.cut.column, start, stop), request_T)]
                present_Q[request_T] = True
        most.append(largest + 1)
    return present_Q, tuple(most)


def _hash_columns(columns: list[npt.NDArray[Any]], start: int) -> int:
    return sum(_hash(column, -1 - number, start) for number, column in enumerate(columns))


def _hash(values: npt.NDArray[Any], part: int, start: int) -> int:
    """The hash of rows from `start` on of a layer, or of a column (`part` < 0); hashes of blocks add up."""
    raw = values.reshape(-1).view(np.uint8)
    first = ((part + len(COLUMNS)) << 40) + start * (raw.size // max(len(values), 1)) // _WORD
    whole = raw.size - raw.size % _WORD
    total = int(counting.hash_words(raw[:whole].view(np.uint64), first))
    if whole < raw.size:
        tail = np.zeros(_WORD, dtype=np.uint8)
        tail[: raw.size - whole] = raw[whole:]
        total += int(counting.hash_words(tail.view(np.uint64), first + whole // _WORD))
    return total
