"""What a trace holds, how its routing looks, and what it lacks."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from placement.analysis.info import measures
from placement.analysis.info.findings import OverLayers, Study
from placement.analysis.info.reading import Reading
from placement.core.model import Model, layers_named
from placement.traces.format import RequestEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderPart:
    """A domain or a category: its requests that have tokens, its tokens and their share of all. None has no name."""

    domain: str | None
    category: str | None
    requests: int
    tokens: int
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    """The routing of one layer; `placement.analysis.info.measures` defines the measures.

    Attributes:
        layer_id: Absolute index of the layer.
        load_skew: Most loaded expert over the mean.
        load_cv: Standard deviation of the experts' loads over the mean.
        unused_experts: Experts that no token visits.
        coactivation_lift: How many times oftener than by chance an average token's pair is seen; None without pairs.
        domain_drift: How far the loads of an average domain are from all loads, 0 to 1; None of fewer than two domains.
        domain_drift_chance: The drift of requests that were dealt to domains at random.
        overlap: Share of a token's experts that the token one position earlier used; None without such pairs.
        overlap_chance: The overlap of two unrelated tokens of these loads.
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
class TraceInfo(OverLayers):
    """What a trace holds, or what is known of counts without tokens.

    Attributes:
        model: The model that the traffic is of.
        num_tokens: Tokens of the selected requests.
        prefill_tokens: Tokens of prompts; None for counts.
        decode_tokens: Tokens that the model wrote; None for counts.
        draft_tokens: Drafts of speculative decoding that were rejected; None for counts.
        num_requests: Requests that have tokens.
        listed_requests: Selected requests of the manifests.
        weights: Whether every token has router weights.
        domains: Every domain, those with most tokens first.
        categories: Every category, those with most tokens first.
        layers: The routing of each layer.
        missing: One sentence for each thing that the trace lacks.
        study: What grouping and maps by domain rest on; None where no study was asked for.
    """

    model: Model
    num_tokens: int
    prefill_tokens: int | None
    decode_tokens: int | None
    draft_tokens: int | None
    num_requests: int
    listed_requests: int
    weights: bool
    domains: tuple[FolderPart, ...]
    categories: tuple[FolderPart, ...]
    layers: tuple[LayerInfo, ...]
    missing: tuple[str, ...]
    study: Study | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, the means over layers included; `study` (`trace-study/1`) only if there is one."""
        plain = asdict(replace(self, study=None)) | {"mean": {measure: self.mean(measure) for measure in MEASURES}}
        del plain["study"]
        return plain if self.study is None else plain | {"study": self.study.document()}


def facts_of(found: Reading) -> TraceInfo:
    return TraceInfo(
        model=found.model,
        num_tokens=found.num_tokens,
        prefill_tokens=None if found.decode is None else found.num_tokens - found.decode - found.drafts,
        decode_tokens=found.decode,
        draft_tokens=None if found.decode is None else found.drafts,
        num_requests=int(np.count_nonzero(found.tokens_Q)),
        listed_requests=found.listed,
        weights=found.num_shards > 0 and found.shards_without_weights == 0,
        domains=_parts(found, by_category=False),
        categories=_parts(found, by_category=True),
        layers=_layers(found),
        missing=tuple(_missing(found)),
    )


def _parts(found: Reading, by_category: bool) -> tuple[FolderPart, ...]:
    """Domains or categories, those with most tokens first."""
    tokens_of: dict[tuple[str | None, str | None], list[int]] = {}
    for entry, tokens in zip(found.entries, found.tokens_Q.tolist(), strict=True):
        if tokens:
            key = (entry.domain, entry.category if by_category else None)
            tokens_of.setdefault(key, []).append(tokens)
    total = int(found.tokens_Q.sum())
    parts = [
        FolderPart(
            domain=domain, category=category, requests=len(tokens), tokens=sum(tokens), share=sum(tokens) / total
        )
        for (domain, category), tokens in tokens_of.items()
        if domain is not None or category is not None
    ]
    return tuple(sorted(parts, key=lambda part: (-part.tokens, part.domain or "", part.category or "")))


def _layers(found: Reading) -> tuple[LayerInfo, ...]:
    model, load_LE = found.model, found.load_LE
    drift = measures.domain_drift(found.profile_QLE, found.domain_Q)
    lift_L = None if found.coact_LEE is None else measures.coactivation_lift(found.coact_LEE)
    skew_L, cv_L = measures.load_skew(load_LE), measures.load_cv(load_LE)
    chance_L = measures.overlap_chance(load_LE, found.size_L)
    return tuple(
        LayerInfo(
            layer_id=layer_id,
            load_skew=float(skew_L[layer]),
            load_cv=float(cv_L[layer]),
            unused_experts=int(np.count_nonzero(load_LE[layer] == 0)),
            coactivation_lift=None if lift_L is None else lift_L[layer],
            domain_drift=None if drift is None else float(drift[0][layer]),
            domain_drift_chance=None if drift is None else float(drift[1][layer]),
            overlap=float(found.shared_L[layer] / found.followed_L[layer]) if found.followed_L[layer] else None,
            overlap_chance=float(chance_L[layer]),
        )
        for layer, layer_id in enumerate(model.layer_ids)
    )


def _missing(found: Reading) -> list[str]:
    """What a reader of the figures should know is not there."""
    told: list[str] = []
    present = [entry for entry, tokens in zip(found.entries, found.tokens_Q, strict=True) if tokens]
    if found.decode is None:
        told.append("counts without tokens: phases, domains, pairs of experts and overlap are unknown")
    else:
        told += _missing_of_tokens(found, present)
    layer_ids = found.model.layer_ids
    if found.left_out:
        told.append(f"{layers_named(found.left_out)} left out: nothing was counted there")
    absent = sorted(set(range(layer_ids[0], layer_ids[-1])) - set(layer_ids) - set(found.left_out))
    if absent:
        told.append(f"no {layers_named(absent)}: dense, or not recorded")
    unused = int(np.count_nonzero(found.load_LE == 0))
    if unused:
        layers = int(np.count_nonzero((found.load_LE == 0).any(axis=1)))
        told.append(f"no token for {unused} of {found.load_LE.size} experts (in {layers} of {len(layer_ids)} layers)")
    return told


def _missing_of_tokens(found: Reading, present: list[RequestEntry]) -> list[str]:
    told: list[str] = []
    lacking_L = 1 - found.size_L / found.model.top_k
    if lacking_L.any():
        told.append(f"no expert in {lacking_L.mean():.2%} of the places of top-{found.model.top_k} sets")
    if found.shards_without_weights == found.num_shards:
        told.append("no router weights")
    elif found.shards_without_weights:
        told.append(f"no router weights in {found.shards_without_weights} of {found.num_shards} shards")
    if found.decode == 0:
        told.append("no decode tokens")
    if found.decode is not None and found.decode + found.drafts == found.num_tokens:
        told.append("no prefill tokens")
    empty = found.listed - len(present)
    if empty:
        told.append(f"no tokens of {empty} of {found.listed} requests")
    for name in ("domain", "category"):
        lacking = sum(getattr(entry, name) is None for entry in present)
        if lacking:
            told.append(f"no {name} for {'any' if lacking == len(present) else lacking} of {len(present)} requests")
    ids = {entry.id for entry in present}
    if len(ids) < len(present):
        told.append(f"{len(present) - len(ids)} requests have an id that another has; they count as one request")
    if found.skips:
        told.append(f"{found.skips} gaps in the positions of requests: tokens between were not recorded")
    if found.repeats:
        told.append(f"{found.repeats} tokens repeat request and position of another: recorded twice?")
    if not found.pairs:
        told.append("no two consecutive tokens in a shard: overlap is unknown")
    return told
