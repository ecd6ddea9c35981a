"""One reading of a trace for the study: exact loads, and the counts of a uniform sample of its requests."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from placement.analysis.statistics import count_overlap, previous_rows
from placement.analysis.study.study_kernels import count_experts, count_nodes
from placement.core.model import Model
from placement.errors import TraceError
from placement.support.parallel import run_tasks
from placement.traces.checked import checked_ids
from placement.traces.split import request_keys
from placement.traces.trace import Block, Trace
from placement.workload.counts_file import Counts

MOST_REQUESTS = 1_024
MOST_CELLS = 1 << 23  # of requests x layers x experts: what the sample holds in memory is a few hundred MB at most
STEPS = (8, 16, 32, 64, 128, 256, 512)
PREFILL, QUARTER = "prefill", "first quarter"

Labels = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """What the study looks at. A request has two parts: the first (0) is to foretell the second (1).

    first_part    "prefill", where at least half of the requests have tokens of both phases, else "first quarter" of
                  the positions; None for counts without tokens, which are all in part 1
    load_LE       int64 [L, E], assignments of all tokens
    shared_L      int64 [L], experts shared by the `pairs` of consecutive tokens, of all tokens
    ids           of the sampled requests; entries of one id are one request
    label_Q       domain or category of each, or None
    count_LQHE    uint32 [L, Q, 2, E], assignments of the sampled requests by part
    step_LQSE     uint32 [L, Q, S, E], those of positions from STEPS[s - 1] to STEPS[s]; S is 0 for counts
    length_Q      int64 [Q], positions from first to last
    touched_LQHN  int64 [L, Q, 2, N], tokens of which a node serves an expert when experts lie in order of their ids
    exact         False where counts are scaled fractions
    """

    model: Model
    first_part: str | None
    num_tokens: int
    num_requests: int
    load_LE: npt.NDArray[np.int64]
    shared_L: npt.NDArray[np.int64]
    pairs: int
    ids: tuple[str, ...]
    label_Q: tuple[str | None, ...]
    count_LQHE: npt.NDArray[np.uint32]
    step_LQSE: npt.NDArray[np.uint32]
    length_Q: npt.NDArray[np.int64]
    touched_LQHN: npt.NDArray[np.int64]
    exact: bool

    def whole_Q(self) -> npt.NDArray[np.bool_]:
        """Whether each request has tokens in both parts, bool [Q]."""
        return np.asarray(self.count_LQHE[0].any(axis=2).all(axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Columns:
    """What the columns of the tokens say of each entry of the manifest, int64 [Q]."""

    tokens_Q: npt.NDArray[np.int64]
    prefill_Q: npt.NDArray[np.int64]
    start_Q: npt.NDArray[np.int64]
    stop_Q: npt.NDArray[np.int64]


def in_order(num_experts: int, groups: int) -> npt.NDArray[np.int64]:
    """Group (rank or node) of every expert, int64 [E], when experts lie in order of their ids as evenly as can be."""
    return np.arange(num_experts) * groups // num_experts


def gather_requests(
    trace: Trace,
    *,
    by: str,
    num_nodes: int,
    executor: Executor | None = None,
    progress: Callable[[int], None] | None = None,
) -> RequestCounts:
    """Read the kept tokens of `trace` block by block: the columns first, then the experts. Raises TraceError."""
    model = trace.model
    columns = _columns(trace)
    both = np.count_nonzero((columns.prefill_Q > 0) & (columns.prefill_Q < columns.tokens_Q))
    present = np.flatnonzero(columns.tokens_Q)
    if not len(present):
        raise TraceError("the trace has no tokens of the selected requests; select other requests or record more")
    phases = bool(2 * both >= len(present))
    ids, row_Q, num_requests = _sample(trace, present, model.num_layers * model.num_experts)

    label_of = {entry.id: getattr(entry, by) for entry in reversed(trace.requests)}
    length_Q = np.zeros(len(ids), dtype=np.int64)
    np.add.at(length_Q, row_Q[row_Q >= 0], (columns.stop_Q - columns.start_Q)[row_Q >= 0])
    shape, num_experts = (model.num_layers, len(ids)), model.num_experts
    found = RequestCounts(
        model=model,
        first_part=PREFILL if phases else QUARTER,
        num_tokens=int(columns.tokens_Q.sum()),
        num_requests=num_requests,
        load_LE=np.zeros((model.num_layers, num_experts), dtype=np.int64),
        shared_L=np.zeros(model.num_layers, dtype=np.int64),
        pairs=0,
        ids=ids,
        label_Q=tuple(label_of[name] for name in ids),
        count_LQHE=np.zeros((*shape, 2, num_experts), dtype=np.uint32),
        step_LQSE=np.zeros((*shape, len(STEPS), num_experts), dtype=np.uint32),
        length_Q=length_Q,
        touched_LQHN=np.zeros((*shape, 2, num_nodes), dtype=np.int64),
        exact=True,
    )
    pairs = 0
    for block in trace.blocks():
        previous_T, _, _ = previous_rows(block.request_T, block.column_T("position"))
        rows = _rows(block, columns, row_Q, phases)
        run_tasks(partial(_read, found, block, previous_T, *rows), range(model.num_layers), executor)
        pairs += int(np.count_nonzero(previous_T >= 0))
        if progress is not None:
            progress(len(block.request_T))
    return replace(found, pairs=pairs)


def _rows(block: Block, columns: _Columns, row_Q: Labels, phases: bool) -> tuple[Labels, Labels]:
    """Where each token counts, int64 [T], -1 nowhere: row of (request, part), and of (request, step)."""
    request_T, row_T = block.request_T, row_Q[block.request_T]
    seen_T = block.column_T("position").astype(np.int64) - columns.start_Q[request_T]
    span_T = columns.stop_Q[request_T] - columns.start_Q[request_T]
    second_T = block.column_T("phase") != 0 if phases else 4 * (seen_T + 1) > span_T
    step_T = np.searchsorted(STEPS, seen_T, side="right")
    part_row_T = np.where(row_T >= 0, 2 * row_T + second_T, -1)
    step_row_T = np.where((row_T >= 0) & (step_T < len(STEPS)), len(STEPS) * row_T + step_T, -1)
    return part_row_T, step_row_T


def _read(
    found: RequestCounts, block: Block, previous_T: Labels, part_row_T: Labels, step_row_T: Labels, layer: int
) -> None:
    """Add one layer of a block to what was found."""
    num_experts, num_nodes = found.model.num_experts, found.touched_LQHN.shape[-1]
    ids_TK = checked_ids(found.model, block, layer)
    found.load_LE[layer] += np.bincount(ids_TK.ravel(), minlength=num_experts)
    found.shared_L[layer] += count_overlap(ids_TK, previous_T)
    count_experts(ids_TK, part_row_T, found.count_LQHE[layer].reshape(-1, num_experts))
    count_experts(ids_TK, step_row_T, found.step_LQSE[layer].reshape(-1, num_experts))
    touched_RN = found.touched_LQHN[layer].reshape(-1, num_nodes)
    count_nodes(ids_TK, part_row_T, in_order(num_experts, num_nodes), touched_RN)


def gather_counts(counts: Counts, *, num_nodes: int) -> RequestCounts:
    """The same of counts without tokens: what needs tokens is empty."""
    model = counts.model
    ids, _, num_requests = _keep([str(q) for q in counts.selected.tolist()], model.num_layers * model.num_experts)
    row_of = {str(q): row for row, q in enumerate(counts.selected.tolist())}
    rows = np.array([row_of[name] for name in ids], dtype=np.int64)
    count_LQHE = np.zeros((model.num_layers, len(ids), 2, model.num_experts), dtype=np.uint32)
    count_LQHE[:, :, 1] = np.minimum(counts.count_QLE[rows], np.iinfo(np.uint32).max).transpose(1, 0, 2)
    return RequestCounts(
        model=model,
        first_part=None,
        num_tokens=counts.num_tokens,
        num_requests=num_requests,
        load_LE=counts.load_LE(),
        shared_L=np.zeros(model.num_layers, dtype=np.int64),
        pairs=0,
        ids=ids,
        label_Q=(None,) * len(ids),
        count_LQHE=count_LQHE,
        step_LQSE=np.zeros((model.num_layers, len(ids), 0, model.num_experts), dtype=np.uint32),
        length_Q=np.zeros(len(ids), dtype=np.int64),
        touched_LQHN=np.zeros((model.num_layers, len(ids), 2, num_nodes), dtype=np.int64),
        exact=counts.unit == 1,
    )


def _columns(trace: Trace) -> _Columns:
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
    return _Columns(tokens_Q=tokens_Q, prefill_Q=prefill_Q, start_Q=start_Q, stop_Q=stop_Q)


def _sample(
    trace: Trace, present: npt.NDArray[np.intp], cells: int
) -> tuple[tuple[str, ...], npt.NDArray[np.int64], int]:
    """(ids of the sample, row in it or -1 of every entry [Q], requests there are)."""
    ids, row_of, number = _keep([trace.requests[q].id for q in present.tolist()], cells)
    row_Q = np.full(len(trace.requests), -1, dtype=np.int64)
    row_Q[present] = [row_of.get(trace.requests[q].id, -1) for q in present.tolist()]
    return ids, row_Q, number


def _keep(names: list[str], cells: int) -> tuple[tuple[str, ...], dict[str, int], int]:
    """As many requests as memory allows, those with the smallest keys, in their first order."""
    distinct = list(dict.fromkeys(names))
    most = max(min(MOST_REQUESTS, MOST_CELLS // cells), 2)
    drawn = np.sort(np.argsort(request_keys(distinct, 0), kind="stable")[:most])
    kept = tuple(distinct[number] for number in drawn.tolist())
    return kept, {name: row for row, name in enumerate(kept)}, len(distinct)
