"""The requests that the study looks at: a uniform sample, counted by part and by the tokens seen."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from placement.analysis.info.kernels import count_experts, count_nodes
from placement.core.model import Model
from placement.traces.split import request_keys
from placement.traces.trace import Block, Trace
from placement.workload.counts_file import ExpertCounts
from placement.workload.workload import PROFILE_REQUESTS

MOST_CELLS = 1 << 23  # of requests x layers x experts: what the study's sample holds in memory is a few hundred MB
STEPS = (8, 16, 32, 64, 128, 256, 512)
PREFILL, QUARTER = "prefill", "first quarter"

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """What the study looks at of some requests. Each has two parts: the first (0) is to foretell the second (1).

    first_part    "prefill", where at least half of the requests have tokens of both phases, else "first quarter" of
                  the positions; None for counts without tokens, which are all in part 1
    num_requests  that the sample was drawn from; entries of one id are one request
    label_Q       domain or category of each sampled request, or None
    count_LQHE    uint32 [L, Q, 2, E], assignments of the sampled requests by part
    step_LQSE     uint32 [L, Q, S, E], those of positions from STEPS[s - 1] to STEPS[s]; S is 0 for counts
    length_Q      int64 [Q], positions from first to last
    touched_LQHN  int64 [L, Q, 2, N], tokens of which a node serves an expert when experts lie in order of their ids
    exact         False where counts are scaled fractions
    """

    first_part: str | None
    num_requests: int
    label_Q: tuple[str | None, ...]
    count_LQHE: npt.NDArray[np.uint32]
    step_LQSE: npt.NDArray[np.uint32]
    length_Q: Ints
    touched_LQHN: Ints
    exact: bool

    def whole_Q(self) -> npt.NDArray[np.bool_]:
        """Whether each request has tokens in both parts, bool [Q]."""
        return np.asarray(self.count_LQHE[0].any(axis=2).all(axis=1))


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """What the columns of the tokens say of each entry of the manifest, int64 [Q]."""

    tokens_Q: Ints
    prefill_Q: Ints
    start_Q: Ints
    stop_Q: Ints


def in_order(num_experts: int, groups: int) -> Ints:
    """Group (rank or node) of every expert, int64 [E], when experts lie in order of their ids as evenly as can be."""
    return np.arange(num_experts) * groups // num_experts


class Sampling:
    """The sample of the study as it grows."""

    def __init__(self, trace: Trace, columns: Columns, present: npt.NDArray[np.intp], by: str, num_nodes: int) -> None:
        model, entries = trace.model, trace.requests
        both = np.count_nonzero((columns.prefill_Q > 0) & (columns.prefill_Q < columns.tokens_Q))
        self.phases = bool(2 * both >= len(present))
        self.columns = columns
        ids, row_of, number = _keep([entries[q].id for q in present.tolist()], model.num_layers * model.num_experts)
        self.row_Q = np.full(len(entries), -1, dtype=np.int64)
        self.row_Q[present] = [row_of.get(entries[q].id, -1) for q in present.tolist()]
        label_of = {entry.id: getattr(entry, by) for entry in reversed(entries)}
        empty = _empty(model, len(ids), len(STEPS), num_nodes)
        mine = self.row_Q >= 0
        np.add.at(empty.length_Q, self.row_Q[mine], (columns.stop_Q - columns.start_Q)[mine])
        self.sample = replace(
            empty,
            first_part=PREFILL if self.phases else QUARTER,
            num_requests=number,
            label_Q=tuple(label_of[name] for name in ids),
        )
        self.node_E = in_order(model.num_experts, num_nodes)

    def rows(self, block: Block) -> tuple[Ints, Ints]:
        """Where each token counts, int64 [T], -1 nowhere: row of (request, part), and of (request, step)."""
        request_T, row_T = block.request_T, self.row_Q[block.request_T]
        seen_T = block.column_T("position").astype(np.int64) - self.columns.start_Q[request_T]
        span_T = self.columns.stop_Q[request_T] - self.columns.start_Q[request_T]
        second_T = block.column_T("phase") != 0 if self.phases else 4 * (seen_T + 1) > span_T
        step_T = np.searchsorted(STEPS, seen_T, side="right")
        part_row_T = np.where(row_T >= 0, 2 * row_T + second_T, -1)
        step_row_T = np.where((row_T >= 0) & (step_T < len(STEPS)), len(STEPS) * row_T + step_T, -1)
        return part_row_T, step_row_T

    def add(self, ids_TK: npt.NDArray[np.integer], part_row_T: Ints, step_row_T: Ints, layer: int) -> None:
        sample, num_experts = self.sample, len(self.node_E)
        count_experts(ids_TK, part_row_T, sample.count_LQHE[layer].reshape(-1, num_experts))
        count_experts(ids_TK, step_row_T, sample.step_LQSE[layer].reshape(-1, num_experts))
        touched_RN = sample.touched_LQHN[layer].reshape(-1, sample.touched_LQHN.shape[-1])
        count_nodes(ids_TK, part_row_T, self.node_E, touched_RN)


def _empty(model: Model, size: int, steps: int, num_nodes: int) -> Sample:
    shape = (model.num_layers, size)
    return Sample(
        first_part=None,
        num_requests=size,
        label_Q=(None,) * size,
        count_LQHE=np.zeros((*shape, 2, model.num_experts), dtype=np.uint32),
        step_LQSE=np.zeros((*shape, steps, model.num_experts), dtype=np.uint32),
        length_Q=np.zeros(size, dtype=np.int64),
        touched_LQHN=np.zeros((*shape, 2, num_nodes), dtype=np.int64),
        exact=True,
    )


def sample_of_counts(counts: ExpertCounts, num_nodes: int) -> Sample:
    """The sample of counts without tokens: what needs tokens is empty."""
    model = counts.model
    names = [str(q) for q in counts.selected.tolist()]
    ids, _, number = _keep(names, model.num_layers * model.num_experts)
    rows = np.array([names.index(name) for name in ids], dtype=np.int64)
    sample = replace(_empty(model, len(ids), 0, num_nodes), num_requests=number, exact=counts.unit == 1)
    sample.count_LQHE[:, :, 1] = np.minimum(counts.count_QLE[rows], np.iinfo(np.uint32).max).transpose(1, 0, 2)
    return sample


def _keep(names: list[str], cells: int) -> tuple[tuple[str, ...], dict[str, int], int]:
    """As many requests as memory allows, those with the smallest keys, in their first order."""
    distinct = list(dict.fromkeys(names))
    most = max(min(PROFILE_REQUESTS, MOST_CELLS // cells), 2)
    drawn = np.sort(np.argsort(request_keys(distinct, 0), kind="stable")[:most])
    kept = tuple(distinct[number] for number in drawn.tolist())
    return kept, {name: row for row, name in enumerate(kept)}, len(distinct)
