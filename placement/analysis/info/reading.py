"""One reading of a trace: what all its tokens add up to, and what the study looks at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from placement.analysis.info.kernels import count_overlap
from placement.analysis.info.measures import previous_rows
from placement.analysis.info.sample import Columns, Ints, Sample, Sampling, sample_of_counts
from placement.core.model import Model
from placement.errors import TraceError
from placement.support.memory import check_fits_memory
from placement.support.parallel import run_tasks
from placement.traces.checked import checked_ids
from placement.traces.format import DECODE, DRAFT, RequestEntry, is_short
from placement.traces.split import request_keys
from placement.traces.trace import Block, Trace
from placement.workload.counting import count_short_sets, set_counter
from placement.workload.counts_file import ExpertCounts
from placement.workload.workload import PROFILE_REQUESTS, pairs_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """Sums over all kept tokens.

    listed        entries of the manifest that are selected; Q of all that there are, `entries`, in the next line
    tokens_Q      int64 [Q], tokens of every entry
    decode        tokens of the decode phase; None for counts without tokens
    drafts        drafts that were rejected
    load_LE       int64 [L, E], assignments of every expert
    coact_LEE     int64 [L, E, E], tokens that visit both experts; diagonal 0; None for counts
    shared_L      int64 [L], experts shared by the `pairs` of consecutive tokens
    followed_L    int64 [L], experts of the later ones of these tokens
    skips, repeats  steps to a later position that leave some out, and steps that stay at the same position
    left_out      layers of a file of counts in which nothing was counted
    profile_QLE   uint32, assignments of the at most 1,024 requests with the smallest keys; domain_Q is the index of the
                  domain of each, or -1
    """

    model: Model
    num_tokens: int
    entries: Sequence[RequestEntry]
    listed: int
    tokens_Q: Ints
    decode: int | None
    drafts: int
    shards_without_weights: int
    num_shards: int
    load_LE: Ints
    coact_LEE: Ints | None
    shared_L: Ints
    followed_L: Ints
    pairs: int
    skips: int
    repeats: int
    profile_QLE: npt.NDArray[np.uint32]
    domain_Q: Ints
    sample: Sample | None
    left_out: tuple[int, ...] = ()

    @property
    def size_L(self) -> npt.NDArray[np.float64]:
        """Mean number of experts of a set, float64 [L]; of counts without tokens the model's."""
        if self.decode is None:
            return np.full(self.model.num_layers, float(self.model.top_k))
        return np.asarray(self.load_LE.sum(axis=1) / self.num_tokens)


def read_trace(
    trace: Trace,
    *,
    by: str,
    num_nodes: int | None,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
) -> Reading:
    """Read the columns of the kept tokens, then their experts; sample only for a number of nodes. Raises TraceError."""
    model, entries = trace.model, trace.requests
    layers, experts = model.num_layers, model.num_experts
    check_fits_memory(model, pairs_bytes(model) + PROFILE_REQUESTS * layers * experts * 4)
    columns = _columns(trace)
    present = np.flatnonzero(columns.tokens_Q)
    if not len(present):
        raise TraceError("the trace has no tokens of the selected requests; select other requests or record more")
    row_Q, domain_Q = _profiles(entries, present)
    sampling = None if num_nodes is None else Sampling(trace, columns, present, by, num_nodes)
    sums = _Sums(model, len(domain_Q), sampling)
    decode = drafts = pairs = skips = repeats = 0
    for block in trace.blocks():
        phase_T = block.column_T("phase")
        previous_T, skipped, repeated = previous_rows(block.request_T, block.column_T("position"), phase_T)
        sampled = None if sampling is None else sampling.rows(block)
        run_tasks(partial(sums.add, block, previous_T, row_Q[block.request_T], sampled), range(layers), executor)
        decode += int(np.count_nonzero(phase_T == DECODE))
        drafts += int(np.count_nonzero(phase_T == DRAFT))
        pairs += int(np.count_nonzero(previous_T >= 0))
        skips, repeats = skips + skipped, repeats + repeated
        if progress is not None:
            progress(len(block.request_T))
    load_LE, coact_LEE = sums.totals()
    return Reading(
        model=model,
        num_tokens=int(columns.tokens_Q.sum()),
        entries=entries,
        listed=len(entries) if trace.selected_Q is None else int(trace.selected_Q.sum()),
        tokens_Q=columns.tokens_Q,
        decode=decode,
        drafts=drafts,
        shards_without_weights=sum(not shard.has_weights for shard in trace.shards),
        num_shards=len(trace.shards),
        load_LE=load_LE,
        coact_LEE=coact_LEE,
        shared_L=sums.shared_L,
        followed_L=sums.followed_L,
        pairs=pairs,
        skips=skips,
        repeats=repeats,
        profile_QLE=sums.profile_QLE,
        domain_Q=domain_Q,
        sample=None if sampling is None else sampling.sample,
    )


class _Sums:
    """What is added up layer by layer; threads never share one."""

    def __init__(self, model: Model, profiles: int, sampling: Sampling | None) -> None:
        shape = (model.num_layers, model.num_experts, model.num_experts)
        self.model, self.sampling = model, sampling
        self.count_sets = set_counter(model.top_k)
        self.pairs_LEE = np.zeros(shape, dtype=np.int64)
        self.profile_QLE = np.zeros((profiles, *shape[:2]), dtype=np.uint32)
        self.load_LE = np.zeros(shape[:2], dtype=np.int64)
        self.shared_L, self.followed_L = (np.zeros(model.num_layers, dtype=np.int64) for _ in range(2))

    def add(
        self,
        block: Block,
        previous_T: Ints,
        row_T: npt.NDArray[np.int32],
        sampled: tuple[Ints, Ints] | None,
        layer: int,
    ) -> None:
        """One layer of a block; row_T: profile of each token's request, or -1."""
        ids_TK = block.ids_TK(layer)
        short, top_k = is_short(ids_TK), self.model.top_k
        if short or int(ids_TK.max(initial=0)) >= self.model.num_experts:
            checked_ids(self.model, block, layer)
        pairs_ZEE = np.zeros((1, *self.pairs_LEE.shape[1:]), dtype=np.uint32)
        count_sets = count_short_sets if short else self.count_sets
        count_sets(ids_TK, np.zeros(len(row_T), dtype=np.int8), row_T, pairs_ZEE, self.profile_QLE, layer)
        pairs_EE = pairs_ZEE[0].astype(np.int64)
        if short or top_k == 1:
            self.load_LE[layer] += pairs_EE.diagonal()
            np.fill_diagonal(pairs_EE, 0)
        else:
            if pairs_EE.diagonal().any():  # a set names an expert twice
                checked_ids(self.model, block, layer)
            self.load_LE[layer] += (pairs_EE.sum(axis=0) + pairs_EE.sum(axis=1)) // (top_k - 1)
        self.pairs_LEE[layer] += pairs_EE
        shared, experts = count_overlap(ids_TK, previous_T)
        self.shared_L[layer] += shared
        self.followed_L[layer] += experts
        if self.sampling is not None and sampled is not None:
            self.sampling.add(ids_TK, *sampled, layer)

    def totals(self) -> tuple[Ints, Ints | None]:
        """(load_LE, coact_LEE). Raises TraceError where a layer has no load."""
        for pairs_EE in self.pairs_LEE:  # one at a time: all together would be held twice
            pairs_EE += pairs_EE.T.copy()
        idle = np.flatnonzero(~self.load_LE.any(axis=1))
        if len(idle):
            raise TraceError(f"no token visits an expert of layer {self.model.layer_ids[idle[0]]}; leave the layer out")
        return self.load_LE, self.pairs_LEE if self.model.top_k > 1 else None


def _profiles(entries: Sequence[RequestEntry], present: npt.NDArray[np.intp]) -> tuple[npt.NDArray[np.int32], Ints]:
    """(row of every entry among the profiles or -1, int32 [Q]; index of the domain of every row or -1, int64)."""
    key_Q = request_keys([entry.id for entry in entries], 0)
    kept = np.unique(key_Q[present])[:PROFILE_REQUESTS]
    row_Q = np.full(len(entries), -1, dtype=np.int32)
    mine = present[np.isin(key_Q[present], kept)]
    row_Q[mine] = np.searchsorted(kept, key_Q[mine])
    numbers: dict[str, int] = {}
    domain_of_key = {
        key: -1 if entry.domain is None else numbers.setdefault(entry.domain, len(numbers))
        for key, entry in zip(key_Q.tolist(), entries, strict=True)
    }
    return row_Q, np.array([domain_of_key[key] for key in kept.tolist()], dtype=np.int64)


def read_counts(counts: ExpertCounts, *, num_nodes: int | None) -> Reading:
    """The same of counts without tokens: what needs tokens is empty."""
    model = counts.model
    size = len(counts.count_QLE)
    return Reading(
        model=model,
        num_tokens=counts.num_tokens,
        entries=[RequestEntry(id=str(q)) for q in counts.selected.tolist()],
        listed=size,
        tokens_Q=np.ones(size, dtype=np.int64),
        decode=None,
        drafts=0,
        shards_without_weights=0,
        num_shards=0,
        load_LE=counts.load_LE(),
        coact_LEE=None,
        shared_L=np.zeros(model.num_layers, dtype=np.int64),
        followed_L=np.zeros(model.num_layers, dtype=np.int64),
        pairs=0,
        skips=0,
        repeats=0,
        profile_QLE=np.zeros((0, model.num_layers, model.num_experts), dtype=np.uint32),
        domain_Q=np.zeros(0, dtype=np.int64),
        sample=None if num_nodes is None else sample_of_counts(counts, num_nodes),
        left_out=counts.left_out,
    )


def _columns(trace: Trace) -> Columns:
    size = len(trace.requests)
    tokens_Q, prefill_Q, stop_Q = (np.zeros(size, dtype=np.int64) for _ in range(3))
    start_Q = np.full(size, np.iinfo(np.int64).max)
    for block in trace.blocks():
        request_T, position_T = block.request_T, block.column_T("position").astype(np.int64)
        tokens_Q += np.bincount(request_T, minlength=size)
        prefill_Q += np.bincount(request_T[block.column_T("phase") == 0], minlength=size)
        np.minimum.at(start_Q, request_T, position_T)
        np.maximum.at(stop_Q, request_T, position_T + 1)
    start_Q[tokens_Q == 0] = 0
    return Columns(tokens_Q=tokens_Q, prefill_Q=prefill_Q, start_Q=start_Q, stop_Q=stop_Q)
