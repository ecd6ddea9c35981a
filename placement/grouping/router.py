"""The online router: a request's expert counts so far in, its home node out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import MOST_LAYERS
from placement.errors import InputError, OptionError
from placement.grouping.assign import cheapest_flow

BAND = 0.01  # sends per token; homes that differ by less count as equal
SLACK_REQUESTS = 1.0  # mean requests by which a node may be ahead of the least loaded and still get another

Counts = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """A micro-batch: requests (places in the batch) that run on one node together."""

    node: int
    members: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Router:
    """Holds no state but its tables, so threads may share it; the same question always gets the same answer.

    Attributes:
        layers: Positions of the layers that it looks at, ascending.
        saved_MEN: Mean sends that an assignment of expert e saves if its home is node n, float32 [M, E, N].
        num_layers: MoE layers of the model.
        top_k: Experts that a token visits in one of these layers, the mean where sets differ in size.
        band: Sends per token and layer by which a home may be worse than the best and still be chosen for its load.
        slack_tokens: A node whose load exceeds the least by more is not chosen.
    """

    num_layers: int
    top_k: float
    layers: tuple[int, ...]
    saved_MEN: npt.NDArray[np.float32]
    band: float
    slack_tokens: float
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
        object.__setattr__(self, "saved_MEN", saved)
        object.__setattr__(self, "_flat_NX", np.ascontiguousarray(saved.reshape(-1, saved.shape[2]).T))
        object.__setattr__(self, "_rows_M", np.asarray(self.layers, dtype=np.int64))

    @property
    def num_nodes(self) -> int:
        """Nodes, N."""
        return int(self.saved_MEN.shape[2])

    @property
    def num_experts(self) -> int:
        """Experts of a layer, E."""
        return int(self.saved_MEN.shape[1])

    def assign(self, counts_LE: Counts, load: Sequence[float] | npt.NDArray[Any] | None = None) -> int:
        """The home node of a request.

        Of the nodes that are not ahead of the least loaded by more than `slack_tokens`, those whose expected extra
        sends are within `band` of the best: the least loaded of them, of equals the better, then the first.

        Args:
            counts_LE: How often its tokens visited each expert so far (prefill, or its first tokens), [L, E]; only the
                rows of `layers` are looked at, but all are to be there.
            load: Tokens that each node has now, [N]; None: nothing is known, and the best node is taken.

        Raises:
            InputError: The counts or the load have a wrong shape, or numbers that are negative or not finite.
        """
        return self.choose(self.extra_sends(counts_LE), load)

    def choose(self, extra_N: npt.NDArray[np.float64], load: Sequence[float] | npt.NDArray[Any] | None = None) -> int:
        """The node that `assign` answers for these extra sends.

        Raises:
            InputError: The load has a wrong shape, or numbers that are negative or not finite.
        """
        if load is None:
            return int(extra_N.argmin())
        load_N = np.asarray(load, dtype=np.float64)
        if load_N.shape != extra_N.shape or not np.isfinite(load_N).all():
            raise InputError(f"load has shape {list(load_N.shape)}; one finite number for each of {len(extra_N)} nodes")
        free_N = load_N <= load_N.min() + self.slack_tokens
        near_N = free_N & (extra_N <= extra_N[free_N].min() + self.band)
        return int(np.lexsort((extra_N, np.where(near_N, load_N, np.inf)))[0])

    def extra_sends(self, counts_LE: Counts) -> npt.NDArray[np.float64]:
        """What each home sends more than the best, per token and layer, float64 [N].

        Raises:
            InputError: The counts have a wrong shape, or numbers that are negative or not finite.
        """
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
        return np.asarray((saved_N.max() - saved_N) * (self.top_k / max(total, 1.0)))

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
