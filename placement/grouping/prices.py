"""What a node's load costs a request that comes: prices at which the next requests would even loads out.

The online form of the assignment of all requests together: its dual prices, found again at every request for the
requests of the past, which stand for those to come, and for the loads of the moment. The past is that of training until
requests have come: the last of them tell better what comes next.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from placement.errors import InputError
from placement.grouping.router_kernels import scaled_to

HORIZON = 3.25
AHEAD_REQUESTS = 1.0  # mean requests: loads are made of whole ones
MOST_SCORES = 256
FROM_TRAINING = 64  # requests of training beside those that have come
MOST_RECENT = 256  # requests that prices look at; the oldest, and those of training first, make room
SWEEPS = 24
SOFTNESS = 0.3  # of the spread of scores: requests this near to another home are shared with it
LEAST_SHARE = 1e-3  # of the next requests that a node gets whatever its load, for the prices

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prices:
    """Scores of past requests, float [S, N]: sends saved per token and layer at each home, as foretold.

    request_tokens  mean tokens of a request
    horizon         so many requests are to even the loads out
    tolerance       a node whose load exceeds the mean by a larger share of it gets no further request
    ahead_tokens    tokens on top of that share
    """

    score_SN: npt.NDArray[np.float32]
    request_tokens: float
    horizon: float
    tolerance: float = 0.0
    ahead_tokens: float = 0.0
    _near_NS: Floats = field(init=False, repr=False)
    _unit: float = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sound = self.score_SN.ndim == 2 and 0 not in self.score_SN.shape and bool(np.isfinite(self.score_SN).all())
        ahead = min(self.tolerance, self.ahead_tokens)
        if not (sound and 0 < self.request_tokens < np.inf and 0 < self.horizon < np.inf and ahead >= 0):
            raise InputError(
                f"prices: scores of shape {list(self.score_SN.shape)} must be finite, one row a request; "
                f"request_tokens={self.request_tokens} and horizon={self.horizon} above 0, "
                f"tolerance={self.tolerance} and ahead_tokens={self.ahead_tokens} 0 or more"
            )
        score_SN = self.score_SN.astype(np.float64)
        spread = float((score_SN - score_SN.mean(axis=1, keepdims=True)).std()) if score_SN.size else 0.0
        unit = max(SOFTNESS * spread, 1e-9)
        object.__setattr__(self, "_unit", unit)
        object.__setattr__(self, "_near_NS", np.ascontiguousarray(self.nearness(score_SN).T))

    @property
    def num_nodes(self) -> int:
        return int(self.score_SN.shape[1])

    def nearness(self, saved_XN: Floats) -> Floats:
        """How near each node is to the best home of a request, 0 to 1, where the price of a node is a factor."""
        best_X1 = saved_XN.max(axis=-1, keepdims=True, initial=-np.inf)
        return np.asarray(np.maximum(np.exp((saved_XN - best_X1) / self._unit), 1e-30))

    def best(self, saved_N: Floats, load_N: Floats, recent: Recent | None = None) -> int:
        """The node that saves most after its price, of those that are not too far ahead; of equals the first.

        The least loaded node never is, so no request waits. What a request then adds is its own: beside the request
        that it got last, no node has more than 1 + tolerance of the mean and `ahead_tokens`, in whatever order they
        come.
        """
        free_N = load_N <= max(load_N.mean() * (1 + self.tolerance) + self.ahead_tokens, load_N.min())
        return int(np.where(free_N, saved_N - self.of(load_N, recent), -np.inf).argmax())

    def of(self, load_N: Floats, recent: Recent | None = None) -> Floats:
        """Price of each node under these loads (tokens): sends per token and layer, float64 [N].

        Sinkhorn's scaling (Cuturi, NeurIPS 2013) of the past requests to the share of the next that a node should get.
        Without `recent` all of the past is that of training.
        """
        ahead_N = (load_N - load_N.mean()) / max(self.request_tokens, 1e-9)
        share_N = np.maximum(1 / len(load_N) - ahead_N / self.horizon, LEAST_SHARE)
        share_N /= share_N.sum()
        near_NS = self._near_NS if recent is None else recent.near_NS
        num_columns = near_NS.shape[1] if recent is None else recent.requests
        scale_N = scaled_to(near_NS, num_columns, share_N, SWEEPS)
        return np.asarray(-self._unit * np.log(np.maximum(scale_N, 1e-300)))


class Recent:
    """The requests that came last: what they save at each home, as foretold. Of one thread.

    Args:
        prices: Those of training are the first.

    Attributes:
        near_NS: Their `Prices.nearness`, float64 [N, MOST_RECENT], of which the first `requests` columns are filled.
        requests: How many are known.
    """

    def __init__(self, prices: Prices) -> None:
        trained_NS = prices.nearness(prices.score_SN.astype(np.float64)).T
        self.requests = min(FROM_TRAINING, trained_NS.shape[1])
        some = np.arange(self.requests) * trained_NS.shape[1] // self.requests
        self.near_NS = np.ones((prices.num_nodes, MOST_RECENT))
        self.near_NS[:, : self.requests] = trained_NS[:, some]
        self._prices, self._next = prices, self.requests

    def add(self, saved_N: Floats) -> None:
        """A request has come that saves so much at each home."""
        at = self._next % MOST_RECENT
        self.near_NS[:, at] = self._prices.nearness(saved_N)
        self.requests = max(self.requests, at + 1)
        self._next = at + 1


def rows_by_tokens(tokens_S: npt.NDArray[np.number], most: int) -> npt.NDArray[np.int64]:
    """Which past requests stand for those to come, int64 [`most`]: of every stretch of tokens one, a long one twice.

    Loads are made of tokens: prices at which every node got as many requests would load those that long ones prefer.
    """
    end_S = np.cumsum(tokens_S, dtype=np.float64)
    row_R: npt.NDArray[np.int64] = np.searchsorted(end_S, (np.arange(most) + 0.5) * (end_S[-1] / most))
    return row_R
