"""What a trace holds, how its routing looks, and what it lacks."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.analysis import statistics
from placement.core.model import Model
from placement.support.parallel import run_tasks
from placement.traces.split import request_keys
from placement.traces.trace import Trace
from placement.workload.count import count
from placement.workload.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A domain or a category: its requests that have tokens, its tokens and their share of all. None has no name."""

    domain: str | None
    category: str | None
    requests: int
    tokens: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """The routing of one layer; `placement.analysis.statistics` defines the measures.

    load_skew            max / mean of the experts' loads
    load_cv              standard deviation / mean of them
    unused_experts       experts that no token visits
    coactivation_lift    of an average token's pair, how many times oftener it is seen than by chance; None if K = 1
    domain_drift         0 to 1, how far the loads of an average domain are from all; None with fewer than two domains
    domain_drift_chance  what requests dealt to domains at random give
    overlap              share of a token's experts that the token one position earlier used; None without such pairs
    overlap_chance       what two unrelated tokens of these loads give
    """

    layer_id: int
    load_skew: float
    load_cv: float
    unused_experts: int
    coactivation_lift: float | None
    domain_drift: float | None
    domain_drift_chance: float | None
    overlap: float | None
    overlap_chance: float


MEASURES = (
    "load_skew",
    "load_cv",
    "coactivation_lift",
    "domain_drift",
    "domain_drift_chance",
    "overlap",
    "overlap_chance",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceInfo:
    """num_requests have tokens; listed_requests are in the manifests and selected. `missing`: one sentence each."""

    model: Model
    num_tokens: int
    prefill_tokens: int
    decode_tokens: int
    num_requests: int
    listed_requests: int
    weights: bool
    domains: tuple[Part, ...]
    categories: tuple[Part, ...]
    layers: tuple[LayerInfo, ...]
    missing: tuple[str, ...]

    def values(self, measure: str) -> list[float]:
        """A measure of `MEASURES` in the layers that have it."""
        found = [getattr(layer, measure) for layer in self.layers]
        return [value for value in found if value is not None]

    def mean(self, measure: str) -> float | None:
        values = self.values(measure)
        return float(np.mean(values)) if values else None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the means over layers included."""
        return {**asdict(self), "mean": {measure: self.mean(measure) for measure in MEASURES}}


@dataclass(slots=True)
class _Pass:
    """What one pass over the trace adds to its workload."""

    tokens_Q: npt.NDArray[np.int64]
    shared_L: npt.NDArray[np.int64]
    pairs: int = 0
    decode: int = 0
    skips: int = 0
    repeats: int = 0


def describe(
    trace: Trace, executor: Executor | None = None, progress: Callable[[int], None] | None = None
) -> TraceInfo:
    """Describe the kept tokens of `trace`, which is streamed twice and never held as a whole.

    Overlap compares tokens of the same shard only. Domain drift is that of a uniform sample of at most 1,024 requests
    (the workload's profiles). progress is called with the tokens of each block that was counted. Raises TraceError.
    """
    workload = count(trace, executor=executor, progress=progress)
    seen = _pass(trace, executor)
    return TraceInfo(
        model=trace.model,
        num_tokens=workload.num_tokens,
        prefill_tokens=workload.num_tokens - seen.decode,
        decode_tokens=seen.decode,
        num_requests=int(np.count_nonzero(seen.tokens_Q)),
        listed_requests=len(trace.requests) if trace.selected_Q is None else int(trace.selected_Q.sum()),
        weights=all(shard.has_weights for shard in trace.shards),
        domains=_parts(trace, seen.tokens_Q, by_category=False),
        categories=_parts(trace, seen.tokens_Q, by_category=True),
        layers=_layers(trace, workload, seen),
        missing=tuple(_missing(trace, workload, seen)),
    )


def _pass(trace: Trace, executor: Executor | None) -> _Pass:
    num_layers = trace.model.num_layers
    seen = _Pass(tokens_Q=np.zeros(len(trace.requests), dtype=np.int64), shared_L=np.zeros(num_layers, dtype=np.int64))
    for block in trace.blocks():
        seen.tokens_Q += np.bincount(block.request_T, minlength=len(seen.tokens_Q))
        seen.decode += int(np.count_nonzero(block.column_T("phase")))
        previous_T, skips, repeats = statistics.previous_rows(block.request_T, block.column_T("position"))
        seen.skips, seen.repeats = seen.skips + skips, seen.repeats + repeats
        seen.pairs += int(np.count_nonzero(previous_T >= 0))
        tasks = ((block, layer, previous_T) for layer in range(num_layers))
        seen.shared_L += run_tasks(
            lambda task: statistics.count_overlap(task[0].ids_TK(task[1]), task[2]), tasks, executor
        )
    return seen


def _parts(trace: Trace, tokens_Q: npt.NDArray[np.int64], by_category: bool) -> tuple[Part, ...]:
    """Domains or categories, those with most tokens first."""
    found: dict[tuple[str | None, str | None], list[int]] = {}
    for entry, tokens in zip(trace.requests, tokens_Q.tolist(), strict=True):
        if tokens:
            key = (entry.domain, entry.category if by_category else None)
            found.setdefault(key, []).append(tokens)
    total = int(tokens_Q.sum())
    parts = [
        Part(domain=domain, category=category, requests=len(tokens), tokens=sum(tokens), share=sum(tokens) / total)
        for (domain, category), tokens in found.items()
        if domain is not None or category is not None
    ]
    return tuple(sorted(parts, key=lambda part: (-part.tokens, part.domain or "", part.category or "")))


def _layers(trace: Trace, workload: Workload, seen: _Pass) -> tuple[LayerInfo, ...]:
    model = trace.model
    drift = statistics.domain_drift(workload.profile_QLE, _domain_of_profiles(trace, workload))
    lift_L = statistics.coactivation_lift(workload.coact_LEE, model.top_k)
    skew_L, cv_L = statistics.load_skew(workload.load_LE), statistics.load_cv(workload.load_LE)
    chance_L = statistics.overlap_chance(workload.load_LE, workload.num_tokens, model.top_k)
    return tuple(
        LayerInfo(
            layer_id=layer_id,
            load_skew=float(skew_L[layer]),
            load_cv=float(cv_L[layer]),
            unused_experts=int(np.count_nonzero(workload.load_LE[layer] == 0)),
            coactivation_lift=None if lift_L is None else float(lift_L[layer]),
            domain_drift=None if drift is None else float(drift[0][layer]),
            domain_drift_chance=None if drift is None else float(drift[1][layer]),
            overlap=float(seen.shared_L[layer] / (seen.pairs * model.top_k)) if seen.pairs else None,
            overlap_chance=float(chance_L[layer]),
        )
        for layer, layer_id in enumerate(model.layer_ids)
    )


def _domain_of_profiles(trace: Trace, workload: Workload) -> npt.NDArray[np.int64]:
    """Index of each profile's domain, int64; -1 where the request has none."""
    keys = request_keys([entry.id for entry in trace.requests], workload.seed).tolist()
    numbers: dict[str, int] = {}
    domain_of_key = {
        key: -1 if entry.domain is None else numbers.setdefault(entry.domain, len(numbers))
        for key, entry in zip(keys, trace.requests, strict=True)
    }
    return np.array([domain_of_key[key] for key in workload.profile_key_Q.tolist()], dtype=np.int64)


def _missing(trace: Trace, workload: Workload, seen: _Pass) -> list[str]:
    """What a reader of the figures should know is not there."""
    kept = np.ones(len(trace.requests), dtype=bool) if trace.selected_Q is None else trace.selected_Q
    present = [entry for entry, tokens in zip(trace.requests, seen.tokens_Q, strict=True) if tokens]
    told: list[str] = []
    without = sum(not shard.has_weights for shard in trace.shards)
    if without == len(trace.shards):
        told.append("no router weights")
    elif without:
        told.append(f"no router weights in {without} of {len(trace.shards)} shards")
    if seen.decode == 0:
        told.append("no decode tokens")
    if seen.decode == workload.num_tokens:
        told.append("no prefill tokens")
    empty = int(np.count_nonzero(kept & (seen.tokens_Q == 0)))
    if empty:
        told.append(f"no tokens of {empty} of {int(kept.sum())} requests")
    for name in ("domain", "category"):
        lacking = sum(getattr(entry, name) is None for entry in present)
        if lacking:
            told.append(f"no {name} for {'any' if lacking == len(present) else lacking} of {len(present)} requests")
    ids = [entry.id for entry in present]
    if len(set(ids)) < len(ids):
        told.append(f"{len(ids) - len(set(ids))} requests have an id that another has; they count as one request")
    if seen.skips:
        told.append(f"{seen.skips} gaps in the positions of requests: tokens between were not recorded")
    if seen.repeats:
        told.append(f"{seen.repeats} tokens repeat request and position of another: recorded twice?")
    if not seen.pairs:
        told.append("no two consecutive tokens in a shard: overlap is unknown")
    layer_ids = trace.model.layer_ids
    absent = sorted(set(range(layer_ids[0], layer_ids[-1])) - set(layer_ids))
    if absent:
        told.append(f"no layers {', '.join(map(str, absent))}: dense, or not recorded")
    unused = int(np.count_nonzero(workload.load_LE == 0))
    if unused:
        layers = int(np.count_nonzero((workload.load_LE == 0).any(axis=1)))
        told.append(
            f"no token for {unused} of {workload.load_LE.size} experts (in {layers} of {len(layer_ids)} layers)"
        )
    return told
