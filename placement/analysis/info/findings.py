"""What the study answers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from placement.analysis.info.domains import Similarity, Telling
from placement.core.model import Model

SCHEMA = "trace-study/1"


class OverLayers:
    """What has figures by layer, some of which may be unknown."""

    __slots__ = ()
    layers: tuple[Any, ...]

    def values(self, measure: str) -> list[float]:
        """A measure by layer, for the layers that have the measure."""
        found = [getattr(layer, measure) for layer in self.layers]
        return [value for value in found if value is not None]

    def mean(self, measure: str) -> float | None:
        """The mean of a measure over the layers that have the measure."""
        values = self.values(measure)
        return float(np.mean(values)) if values else None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerStudy:
    """One layer; None where the trace does not allow it.

    Attributes:
        layer_id: Absolute index of the layer.
        load_skew: Most loaded expert over the mean.
        balancedness: Mean over the most loaded expert.
        load_gini: Gini coefficient of the experts' loads.
        load_cv: Standard deviation of the experts' loads over the mean.
        top_share: Share of the assignments at the busiest tenth of the experts.
        rank_imbalance: Most loaded rank over the mean, when experts lie in order of their ids.
        node_imbalance: Most loaded node over the mean, when experts lie in order of their ids.
        drift: Total variation between a domain's loads and all loads.
        drift_chance: Total variation for requests that were dealt to random domains.
        overlap_next: Share of a token's top-k set that the token before it in its request visits too.
        overlap_request: Share that another token of its request visits too.
        overlap_domain: Share that a token of another request of its domain visits too.
        overlap_other: Share that a token of another domain visits too.
        overlap_chance: Share that any two tokens have in common by the experts' popularity alone.
        own: Correlation over experts of a request's first part with its second part.
        same_domain: Correlation with the second part of other requests of its domain.
        other_domain: Correlation with the second part of requests of other domains.
        balance_shared: Rank imbalance of a domain's traffic under one map for all.
        balance_own: Rank imbalance of a domain's traffic under a map of its own.
    """

    layer_id: int
    load_skew: float
    balancedness: float
    load_gini: float
    load_cv: float
    top_share: float
    rank_imbalance: float
    node_imbalance: float
    drift: float | None
    drift_chance: float | None
    overlap_next: float | None
    overlap_request: float | None
    overlap_domain: float | None
    overlap_other: float | None
    overlap_chance: float
    own: float | None
    same_domain: float | None
    other_domain: float | None
    balance_shared: float | None
    balance_own: float | None


MEASURES = tuple(LayerStudy.__dataclass_fields__)[1:]


@dataclass(frozen=True, slots=True, kw_only=True)
class HomeFindings:
    """What homes can do, on the second parts of the requests; shares of their assignments, and sends.

    requests             that this was measured on
    held                 experts of a layer that a node holds
    chance               share served by a home chosen at random
    all, domain, first   share served by a home that holds the `held` experts that are most used by all other requests,
                         by others of the domain, by the request's own first part: chosen without the second part
    best                 the same of the second part itself: no home of so many experts serves more
    sends_random         sends per token with experts in order of their ids and random homes
    sends_first          the same with each request at the node that serves its first part best, however full that is
    sends_best           the same for the second part itself: the least that homes can do for that placement
    """

    requests: int
    held: int
    chance: float
    all: float
    domain: float | None
    first: float
    best: float
    sends_random: float
    sends_first: float
    sends_best: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Study(OverLayers):
    """What grouping of requests and maps by domain rest on, measured on a trace.

    Loads, `overlap_next` and `overlap_chance` are those of all tokens; the rest is that of a sample of the requests.

    Attributes:
        by: "domain" or "category": what requests are told apart by.
        first_part: "prefill" or "first quarter", whichever is to foretell the rest; None for counts without tokens.
        missing: One sentence for each part that the trace does not allow.
    """

    model: Model
    by: str
    num_tokens: int
    num_requests: int
    sampled_requests: int
    num_nodes: int
    gpus_per_node: int
    seed: int
    first_part: str | None
    layers: tuple[LayerStudy, ...]
    similarity: Similarity | None
    telling: Telling | None
    homes: HomeFindings | None
    missing: tuple[str, ...]

    @property
    def domain_share(self) -> float | None:
        """How much of what decides the experts of a token lies between domains, 0 to 1."""
        return self._share("overlap_domain")

    @property
    def request_share(self) -> float | None:
        """How much of what decides the experts of a token lies between requests, domains included, 0 to 1."""
        return self._share("overlap_request")

    def _share(self, measure: str) -> float | None:
        """(overlap - chance) / (1 - chance): the overlap of unrelated tokens is 0, that of a token with itself 1."""
        overlap, chance = self.mean(measure), self.mean("overlap_chance")
        return None if overlap is None or chance is None or chance >= 1 else (overlap - chance) / (1 - chance)

    def document(self) -> dict[str, Any]:
        """Plain values for JSON, schema `trace-study/1`."""
        return {
            "schema": SCHEMA,
            **asdict(self),
            "mean": {measure: self.mean(measure) for measure in MEASURES},
            "domain_share": self.domain_share,
            "request_share": self.request_share,
        }
