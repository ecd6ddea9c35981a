"""Counting a segment: two passes over its columns and one over its layers, in memory that does not grow with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.traces.checked import OK, check_ids, fault_error, no_token_error
from placement.traces.format import DRAFT, id_dtype, is_short
from placement.workload import counting
from placement.workload.content_hash import COLUMNS, hash_columns, hash_rows
from placement.workload.read_ahead import SpanBatch, read_ahead
from placement.workload.segment import Plan, Segment
from placement.workload.workload import Workload, smallest_keys


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


def count_segment(plan: Plan, segment: Segment) -> SegmentCounts:
    """Count the tokens of every side. Raises TraceError on ids that are out of range or twice in a top-k set."""
    stats = tuple(span.shard.stat() for span in segment)
    columns = _look_at_columns(plan, segment)
    sums = _Sums(plan, columns, segment)
    for batch, key_T in zip(read_ahead(plan.model, segment), columns.keys, strict=True):
        sums.add(batch, key_T)
    hashes = tuple(value % 2**64 for value in sums.hashes)
    return SegmentCounts(sides=sums.workloads(), hashes=hashes, requests=columns.requests, stats=stats)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """What is known of a batch's tokens before their experts are counted; `side_T` is -1 where they are not."""

    columns: tuple[npt.NDArray[Any], ...]
    request_T: npt.NDArray[np.int32]
    owner_T: npt.NDArray[np.uint64]
    side_T: npt.NDArray[np.int8]


def _tokens(plan: Plan, batch: SpanBatch) -> _Tokens:
    columns = tuple(batch.column_T(name) for name in COLUMNS)
    raw_T, position_T, phase_T = columns
    request_T = batch.request_T(raw_T)
    owner_T, side_T = counting.look_up(request_T, plan.key_Q, plan.side_Q)
    if plan.cut is not None:
        side_T[~plan.cut.keeps(phase_T if plan.cut.column == "phase" else position_T, request_T)] = -1
    if not plan.drafts:
        side_T[phase_T == DRAFT] = -1
    return _Tokens(columns=columns, request_T=request_T, owner_T=owner_T, side_T=side_T)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """What a look at the columns tells.

    present_Q  requests that have tokens which count, bool [Q]
    requests   1 + the largest request index of every span
    keys       of the tokens of every batch, uint64 [T]
    limit_Z    uint64, the largest key in the token sample of each side
    """

    present_Q: npt.NDArray[np.bool_]
    requests: tuple[int, ...]
    keys: list[npt.NDArray[np.uint64]]
    limit_Z: npt.NDArray[np.uint64]


def _look_at_columns(plan: Plan, segment: Segment) -> _Columns:
    present_Q = np.zeros(len(plan.key_Q), dtype=bool)
    requests = [0] * len(segment)
    limit_Z = np.full(plan.num_sides, np.iinfo(np.uint64).max, dtype=np.uint64)
    smallest = [np.empty(0, dtype=np.uint64) for _ in range(plan.num_sides)]
    keys = []
    for batch in read_ahead(plan.model, segment):
        tokens = _tokens(plan, batch)
        ends = np.concatenate([batch.ids_TK(layer) for layer in sorted({0, plan.model.num_layers - 1})], axis=1)
        raw_T, position_T, phase_T = tokens.columns
        key_T = counting.token_keys(tokens.owner_T, position_T, phase_T, ends)
        keys.append(key_T)
        present_Q[tokens.request_T[tokens.side_T >= 0]] = True
        for number, mine in zip(batch.numbers, batch.slices, strict=True):
            requests[number] = max(requests[number], int(raw_T[mine].max()) + 1)
        for side, known_S in enumerate(smallest):
            mine_T = (tokens.side_T == side) & (key_T <= limit_Z[side])
            key_S = np.concatenate([known_S, key_T[mine_T]])
            if len(key_S) > plan.sample_tokens:
                key_S = np.partition(key_S, plan.sample_tokens - 1)[: plan.sample_tokens]
                limit_Z[side] = key_S.max(initial=0)
            smallest[side] = key_S
    return _Columns(present_Q=present_Q, requests=tuple(requests), keys=keys, limit_Z=limit_Z)


_Sample = tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[Any]]


class _Sums:
    """What is counted, as it grows.

    hashes       of what was read of every span
    pairs_LZEE   uint32, pairs of experts by side (Z)
    profile_QLE  uint32, requests whose profile is kept: those of a side together, their keys ascending
    row_Q        int32 [Q], row of every request of the plan among them, or -1
    samples      of every side: key, owner and top-k sets of the tokens with the smallest keys, batch by batch
    """

    def __init__(self, plan: Plan, columns: _Columns, segment: Segment) -> None:
        model = plan.model
        self.dtype = segment[0].shard.id_dtype if segment else id_dtype(model.num_experts)
        self.plan = plan
        self.limit_Z = columns.limit_Z
        self.count_sets = counting.count_short_sets if is_short(self.dtype) else counting.set_counter(model.top_k)
        self.hashes = [0] * len(segment)
        self.tokens_Z = np.zeros(plan.num_sides, dtype=np.int64)
        shape = (model.num_layers, plan.num_sides, model.num_experts, model.num_experts)
        self.pairs_LZEE = np.zeros(shape, dtype=np.uint32)
        no_ids_SLK = np.empty((0, model.num_layers, model.top_k), dtype=self.dtype)
        no_keys_S = np.empty(0, dtype=np.uint64)
        self.samples: list[list[_Sample]] = [[(no_keys_S, no_keys_S, no_ids_SLK)] for _ in range(plan.num_sides)]
        side_Q = np.where(columns.present_Q, plan.side_Q, -1)
        self.kept = [np.unique(plan.key_Q[side_Q == side])[: plan.profile_requests] for side in range(plan.num_sides)]
        self.first = np.cumsum([0, *(len(key_Q) for key_Q in self.kept)]).tolist()
        self.row_Q = np.full(len(plan.key_Q), -1, dtype=np.int32)
        for side, key_Q in enumerate(self.kept):
            mine = np.flatnonzero((side_Q == side) & np.isin(plan.key_Q, key_Q))
            self.row_Q[mine] = self.first[side] + np.searchsorted(key_Q, plan.key_Q[mine])
        self.profile_QLE = np.zeros((self.first[-1], model.num_layers, model.num_experts), dtype=np.uint32)

    def add(self, batch: SpanBatch, key_T: npt.NDArray[np.uint64]) -> None:
        model = self.plan.model
        tokens = _tokens(self.plan, batch)
        pieces = list(zip(batch.numbers, batch.spans, batch.slices, strict=True))
        for number, span, mine in pieces:
            self.hashes[number] += hash_columns([one[mine] for one in tokens.columns], span.start)
        side_T, row_T = tokens.side_T, self.row_Q[tokens.request_T]
        counted = side_T >= 0
        self.tokens_Z += np.bincount(side_T[counted], minlength=len(self.tokens_Z))
        rows = np.flatnonzero(counted & (key_T <= self.limit_Z[side_T]))
        ids_SLK = np.empty((len(rows), model.num_layers, model.top_k), dtype=self.dtype)
        ids_TK, empty_T = None, counted & is_short(self.dtype)
        for layer in range(model.num_layers):
            ids_TK = batch.ids_TK(layer, out=ids_TK)
            for number, span, mine in pieces:
                self.hashes[number] += hash_rows(ids_TK[mine], layer, span.start)
            counting.take_rows(ids_TK, rows, ids_SLK, layer)
            if is_short(self.dtype):
                empty_T &= ids_TK[:, 0] < 0
            self._count_layer(batch, layer, ids_TK, side_T, row_T)
        if empty_T.any():
            span, shard_row = batch.place_of(int(np.flatnonzero(empty_T)[0]))
            raise no_token_error(span.shard.path, shard_row)
        for side, sample in enumerate(self.samples):
            mine_S = side_T[rows] == side
            sample.append((key_T[rows[mine_S]], tokens.owner_T[rows[mine_S]], ids_SLK[mine_S]))
            # any number of tokens may have one key
            if sum(len(key_S) for key_S, _, _ in sample) > 2 * self.plan.sample_tokens:
                sample[:] = [self._settled(sample)]

    def _settled(self, sample: list[_Sample]) -> _Sample:
        key_S, owner_S, ids_SLK = (np.concatenate(column) for column in zip(*sample, strict=True))
        return smallest_keys(key_S, owner_S, ids_SLK, self.plan.sample_tokens)

    def _count_layer(
        self,
        batch: SpanBatch,
        layer: int,
        ids_TK: npt.NDArray[Any],
        side_T: npt.NDArray[np.int8],
        row_T: npt.NDArray[np.int32],
    ) -> None:
        """The kernel trusts the ids, so what it cannot be given is looked for before and after it. Spoils `ids_TK`."""
        model = self.plan.model
        pairs_ZEE = self.pairs_LZEE[layer]
        short = is_short(self.dtype)  # then the diagonal tells nothing of faults
        fits = not short and (model.num_experts > np.iinfo(ids_TK.dtype).max or int(ids_TK.max()) < model.num_experts)
        if fits:
            self.count_sets(ids_TK, side_T, row_T, pairs_ZEE, self.profile_QLE, layer)
            fits = model.top_k == 1 or not pairs_ZEE.diagonal(axis1=1, axis2=2).any()
        if fits:
            return
        counted = np.flatnonzero(side_T >= 0)
        fault, row = check_ids(ids_TK[counted], model.num_experts)
        if fault != OK:
            token = int(counted[row])
            span, shard_row = batch.place_of(token)
            raise fault_error(model, span.shard.path, shard_row, layer, ids_TK[token].tolist(), fault)
        np.minimum(ids_TK, model.num_experts - 1, out=ids_TK)  # only tokens that do not count have others
        self.count_sets(ids_TK, side_T, row_T, pairs_ZEE, self.profile_QLE, layer)

    def workloads(self) -> tuple[Workload, ...]:
        plan, model = self.plan, self.plan.model
        answer = []
        for side, sample in enumerate(self.samples):
            key_S, owner_S, ids_SLK = self._settled(sample)
            coact_LEE = np.empty((model.num_layers, model.num_experts, model.num_experts), dtype=np.int64)
            for pairs_ZEE, coact_EE in zip(self.pairs_LZEE, coact_LEE, strict=True):  # a layer fits in a cache
                np.add(pairs_ZEE[side], pairs_ZEE[side].T, out=coact_EE, dtype=np.int64)
            if model.top_k == 1 or is_short(self.dtype):  # each expert of a token is twice on the diagonal
                experts = np.arange(model.num_experts)
                load_LE = coact_LEE[:, experts, experts] // 2
                coact_LEE[:, experts, experts] = 0
            else:  # it is in K - 1 pairs
                load_LE = coact_LEE.sum(axis=2) // (model.top_k - 1)
            num_tokens = int(self.tokens_Z[side])
            if (load_LE.sum(axis=1) == num_tokens * model.top_k).all():
                ids_SLK = ids_SLK.astype(id_dtype(model.num_experts), copy=False)
            answer.append(
                Workload(
                    model=model,
                    num_tokens=num_tokens,
                    seed=plan.seed,
                    sample_tokens=plan.sample_tokens,
                    profile_requests=plan.profile_requests,
                    load_LE=load_LE,
                    coact_LEE=coact_LEE,
                    sample_key_S=key_S,
                    sample_owner_S=owner_S,
                    sample_ids_SLK=ids_SLK,
                    profile_key_Q=self.kept[side],
                    profile_QLE=self.profile_QLE[self.first[side] : self.first[side + 1]],
                )
            )
        return tuple(answer)
