"""The online router: what is known of a request in, its home node out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import MOST_LAYERS
from placement.errors import InputError, OptionError
from placement.grouping.assign import cheapest_flow
from placement.grouping.predictor import Predictor
from placement.grouping.prices import Prices, Recent

BAND = 0.01  # sends per token; homes that differ by less count as equal
SLACK_REQUESTS = 1.0  # mean requests by which a node may be ahead of the least loaded and still get another

Counts = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


def weighed(
    foretold_XN: Floats, worth: float | Floats, observed_XN: Floats, tokens: float | Floats
) -> npt.NDArray[np.float64]:
    """What was foretold weighs as many tokens as it is worth, what was observed as many as there are."""
    return np.asarray((foretold_XN * worth + observed_XN * tokens) / np.maximum(worth + tokens, 1e-12))


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """A micro-batch: requests (places in the batch) that run on one node together."""

    node: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Home:
    """The home of a request and why.

    Attributes:
        node: The home node.
        why: What the saved sends were told from: `prompt`, `labels`, `counts` and `prefix`, joined by +; `load` where
            nothing was known.
        extra_N: What each home sends more than the best, per token and layer, a lost prefix included, float64 [N].
    """

    node: int
    why: str
    extra_N: npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Router:
    """Holds no state but its tables, so threads may share it; the same question always gets the same answer, beside the
    same load and the same requests before (`recent`).

    Attributes:
        layers: Positions of the layers that it looks at, ascending.
        saved_MEN: Mean sends that an assignment of expert e saves if its home is node n, float32 [M, E, N].
        num_layers: MoE layers of the model.
        top_k: Experts that a token visits in one of these layers, the mean where sets differ in size.
        band: Sends per token and layer by which a home may be worse than the best and still be chosen for its load.
        slack_tokens: A node whose load exceeds the least by more is not chosen.
        prices: What load costs; None, as in files of version 1: `band` and `slack_tokens` say where load decides.
        predictor: Foretells what a request saves before it has run; None: trained on no prompts.
        counts_scale: What a request saves in all layers for each send that it saves in `layers`, means.
        prefix_sends: Sends, in all layers together, that it is worth not to compute a token of a prompt again: its
            experts and its own sends. Attention is left out, whose time the cost model does not know.
    """

    num_layers: int
    top_k: float
    layers: tuple[int, ...]
    saved_MEN: npt.NDArray[np.float32]
    band: float
    slack_tokens: float
    prices: Prices | None = None
    predictor: Predictor | None = None
    counts_scale: float = 1.0
    prefix_sends: float = 0.0
    _flat_NX: npt.NDArray[np.float32] = field(init=False, repr=False)
    _rows_M: npt.NDArray[np.int64] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        saved = np.asarray(self.saved_MEN, dtype=np.float32)
        sized = saved.ndim == 3 and 0 not in saved.shape[1:] and len(saved) == len(self.layers)
        if not sized or not np.isfinite(saved).all():
            raise InputError(
                f"saved has shape {list(saved.shape)}; [{len(self.layers)}, experts, nodes] is needed, finite"
            )
        within = bool(self.layers) and all(0 <= layer < self.num_layers for layer in self.layers)
        if not within or any(one >= two for one, two in pairwise(self.layers)) or self.num_layers > MOST_LAYERS:
            raise InputError(
                f"layers={str(list(self.layers))[:200]} must be ascending, from 0 to {self.num_layers - 1}, of at most "
                f"{MOST_LAYERS} layers"
            )
        if not (np.isfinite(self.band) and self.band >= 0 and self.slack_tokens >= 0 and 0 < self.top_k < np.inf):
            raise InputError(
                f"band={self.band} and slack_tokens={self.slack_tokens} must be 0 or more, top_k={self.top_k} above 0"
            )
        nodes = [one for one in (self.prices, self.predictor) if one is not None and one.num_nodes != saved.shape[2]]
        if nodes or not (0 <= self.counts_scale < np.inf and 0 <= self.prefix_sends < np.inf):
            raise InputError(
                f"prices and predictor must be of {saved.shape[2]} nodes, as saved is; counts_scale="
                f"{self.counts_scale} and prefix_sends={self.prefix_sends} 0 or more"
            )
        object.__setattr__(self, "saved_MEN", saved)
        object.__setattr__(self, "_flat_NX", np.ascontiguousarray(saved.reshape(-1, saved.shape[2]).T))
        object.__setattr__(self, "_rows_M", np.asarray(self.layers, dtype=np.int64))

    @property
    def num_nodes(self) -> int:
        """Nodes, N."""
        return int(self.saved_MEN.shape[2])

    @property
    def num_bytes(self) -> int:
        """Memory that its tables take."""
        return 2 * self.saved_MEN.nbytes + (0 if self.predictor is None else self.predictor.num_bytes)

    @property
    def num_experts(self) -> int:
        """Experts of a layer, E."""
        return int(self.saved_MEN.shape[1])

    def assign(
        self,
        counts_LE: Counts | None = None,
        load: Sequence[float] | npt.NDArray[Any] | None = None,
        *,
        prompt: object = None,
        labels: Mapping[str, str] | None = None,
        cached: Sequence[float] | npt.NDArray[Any] | None = None,
        recent: Recent | None = None,
    ) -> Home:
        """The home of a request, from whatever of this is known.

        Args:
            counts_LE: How often its tokens visited each expert so far (prefill, earlier turns, its first tokens),
                [L, E]; only the rows of `layers` are looked at, but all are to be there.
            load: Tokens that each node has now, [N]; None: nothing is known, and the best node is taken.
            prompt: Ids of the tokens of its prompt.
            labels: Labels by name that training requests had too, such as {"domain": "code"}.
            cached: Tokens of its prompt whose keys and values a node has already, [N]: see `Sessions`.
            recent: The requests before, of this router's `recent`, to which this one is added; None: of training.

        Raises:
            InputError: Something has a wrong shape or type, or numbers that are negative or not finite.
        """
        saved_N, worth, sources = self.foretold(prompt, labels)
        extra_N, seen = (None, 0.0) if counts_LE is None else self._extra(counts_LE)
        if extra_N is not None and seen:
            saved_N = weighed(saved_N, worth, (extra_N.mean() - extra_N) * self.counts_scale, seen)
            sources = [*sources, "counts"]
        elif not sources:
            saved_N = np.zeros(self.num_nodes)
        if cached is not None:
            cached_N = self._one_a_node(cached, "cached")
            if cached_N.any() and self.prefix_sends and self.prices is not None:
                saved_N = saved_N + cached_N * self.prefix_sends / (self.prices.request_tokens * self.num_layers)
                sources = [*sources, "prefix"]
        extra_N = saved_N.max() - saved_N
        return Home(node=self.choose(extra_N, load, recent), why="+".join(sources) or "load", extra_N=extra_N)

    def recent(self) -> Recent | None:
        """Requests that have come, none as yet, for `assign`; None where load has no prices."""
        return None if self.prices is None else Recent(self.prices)

    def choose(
        self,
        extra_N: npt.NDArray[np.float64],
        load: Sequence[float] | npt.NDArray[Any] | None = None,
        recent: Recent | None = None,
    ) -> int:
        """The node for these extra sends: the least after the prices of load; all alike, the least loaded.

        Without prices, of the nodes that are not ahead of the least loaded by more than `slack_tokens`, those whose
        extra sends are within `band` of the best: the least loaded of them, of equals the better, then the first.

        Raises:
            InputError: The load has a wrong shape, or numbers that are negative or not finite.
        """
        if load is None:
            return int(extra_N.argmin())
        load_N = self._one_a_node(load, "load")
        if not extra_N.any():
            return int(load_N.argmin())
        if self.prices is not None:
            node = self.prices.best(-extra_N, load_N, recent)
            if recent is not None:
                recent.add(-extra_N)
            return node
        free_N = load_N <= load_N.min() + self.slack_tokens
        near_N = free_N & (extra_N <= extra_N[free_N].min() + self.band)
        return int(np.lexsort((extra_N, np.where(near_N, load_N, np.inf)))[0])

    def foretold(
        self, prompt: object, labels: Mapping[str, str] | None
    ) -> tuple[npt.NDArray[np.float64], float, list[str]]:
        """What each home is expected to save per token and layer, float64 [N], of a request that has not run.

        Also how many observed tokens tell as much, and the names of what this was told from: none where only what all
        requests have in common is known.

        Raises:
            InputError: The prompt holds something else than ids.
        """
        if self.predictor is None:
            return np.zeros(self.num_nodes), 0.0, []
        known = {"prompt": prompt is not None, "labels": bool(labels)}
        worth = self.predictor.worth_of(**known)
        return self.predictor.saved(prompt, labels), worth, [name for name, given in known.items() if given]

    def _one_a_node(self, values: object, what: str) -> npt.NDArray[np.float64]:
        try:
            value_N = np.asarray(values, dtype=np.float64)
        except (ValueError, TypeError):
            value_N = np.empty(0)
        if value_N.shape != (self.num_nodes,) or not (np.isfinite(value_N) & (value_N >= 0)).all():
            raise InputError(
                f"{what} has shape {list(value_N.shape)}; one finite number for each of {self.num_nodes} nodes "
                f"is needed, 0 or more"
            )
        return value_N

    def extra_sends(self, counts_LE: Counts) -> npt.NDArray[np.float64]:
        """What each home sends more than the best, per token and layer, float64 [N].

        Raises:
            InputError: The counts have a wrong shape, or numbers that are negative or not finite.
        """
        return self._extra(counts_LE)[0]

    def _extra(self, counts_LE: Counts) -> tuple[npt.NDArray[np.float64], float]:
        """`extra_sends`, and how many tokens were counted."""
        counts = np.asarray(counts_LE)
        if counts.shape != (self.num_layers, self.num_experts):
            raise InputError(
                f"counts have shape {list(counts.shape)}; {self.num_layers} layers of {self.num_experts} experts are "
                f"needed: a row for every MoE layer"
            )
        with np.errstate(over="ignore"):  # what is too large is refused as not finite
            chosen = counts[self._rows_M].astype(np.float32).reshape(-1)
            total = float(chosen.sum())
        if not np.isfinite(total) or chosen.min() < 0:
            raise InputError("counts hold numbers that are negative or not finite; they are numbers of assignments")
        saved_N = (self._flat_NX @ chosen).astype(np.float64)
        extra_N = np.asarray((saved_N.max() - saved_N) * (self.top_k / max(total, 1.0)))
        return extra_N, total / (self.top_k * len(self.layers))

    def group(self, batch_of_counts: Sequence[Counts] | Counts, size: int) -> list[MicroBatch]:
        """Micro-batches of `size` requests for one step, with the fewest expected sends; by node, then by place.

        Every node gets as many groups as the others, or one more where they do not divide. All groups are full, but the
        last of one node if the batch is no multiple of `size`.

        Raises:
            InputError: The counts have a wrong shape, or numbers that are negative or not finite.
            OptionError: `size` is out of range.
        """
        if size < 1:
            raise OptionError(f"size={size} must be 1 or more requests")
        if not len(batch_of_counts):
            return []
        extra_BN = np.stack([self.extra_sends(counts) for counts in batch_of_counts])
        num_groups = -(-len(extra_BN) // size)
        groups_N = np.full(self.num_nodes, num_groups // self.num_nodes)
        wanted_N = np.bincount(extra_BN.argmin(axis=1), minlength=self.num_nodes)
        more = np.argsort(groups_N * size - wanted_N, kind="stable")[: num_groups % self.num_nodes]
        groups_N[more] += 1
        cap_N = groups_N * size
        last = int(np.where(groups_N > 0, wanted_N - cap_N, np.iinfo(np.int64).max).argmin())
        cap_N[last] -= num_groups * size - len(extra_BN)
        once_B = np.ones(len(extra_BN), dtype=np.int64)
        node_B = cheapest_flow(extra_BN, once_B, cap_N)[1].argmax(axis=1)
        groups = []
        for node in range(self.num_nodes):
            mine = np.flatnonzero(node_B == node).tolist()
            groups += [MicroBatch(node=node, members=tuple(mine[at : at + size])) for at in range(0, len(mine), size)]
        return groups
