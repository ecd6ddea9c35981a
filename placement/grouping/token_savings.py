"""What single tokens save at each home: tokens of prompts have the ids of tokens that were seen to visit experts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.choices import REPLICA_CHOICE, TRANSPORT
from placement.core.cluster import Cluster
from placement.core.placement import Placement
from placement.grouping.features import token_buckets
from placement.grouping.home_costs import home_costers
from placement.grouping.requests import Requests
from placement.traces.format import TOKEN
from placement.traces.token_order import token_batches
from placement.traces.trace import Trace

MOST_TOKENS = 1 << 18  # evenly spread ones where there are more


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TokenSavings:
    """Tokens whose ids are known.

    request_T  int32 [T]
    token_T    int32 [T], their ids
    saved_TN   float64 [T, N], what each saves per layer at every home, beside the mean home
    """

    request_T: npt.NDArray[np.int32]
    token_T: npt.NDArray[np.int32]
    saved_TN: npt.NDArray[np.float64]

    def by_bucket(self, asked_Q: npt.NDArray[np.bool_], rare_F: npt.NDArray[np.floating]) -> BucketSavings:
        """Of the requests that are asked for; buckets that are not rare at all tell nothing and are left out."""
        bucket_T, buckets = token_buckets(self.token_T, len(rare_F)), len(rare_F)
        mine_T = asked_Q[self.request_T] & (rare_F[bucket_T] > 0)
        key_X, at_T, count_X = np.unique(
            self.request_T[mine_T].astype(np.int64) * buckets + bucket_T[mine_T],
            return_inverse=True,
            return_counts=True,
        )
        sums = [np.bincount(at_T, saved_T, len(key_X)) for saved_T in self.saved_TN[mine_T].T]
        owner_X = key_X // buckets
        tokens_Q = np.bincount(self.request_T, minlength=len(asked_Q))
        return BucketSavings(
            owner_X=owner_X,
            bucket_X=key_X % buckets,
            share_X=count_X / tokens_Q[owner_X],
            saved_XN=np.stack(sums, axis=1) / count_X[:, None],
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class BucketSavings:
    """What the tokens of a request that fill one bucket save.

    owner_X   int64 [X], the request
    bucket_X  int64 [X]
    share_X   float64 [X], of the request's tokens
    saved_XN  float64 [X, N], their mean
    """

    owner_X: npt.NDArray[np.int64]
    bucket_X: npt.NDArray[np.int64]
    share_X: npt.NDArray[np.float64]
    saved_XN: npt.NDArray[np.float64]


def token_savings(
    trace: Trace,
    requests: Requests,
    placement: Placement,
    cluster: Cluster,
    *,
    replica_choice: str = REPLICA_CHOICE,
    transport: str = TRANSPORT,
    most: int = MOST_TOKENS,
) -> TokenSavings:
    """Of the kept tokens of a trace, about `most` of them. Raises OptionError as `home_costs`."""
    costers = home_costers(placement, cluster, replica_choice=replica_choice, transport=transport)
    every = max(-(-int(trace.tokens_Q().sum()) // most), 1)
    unused_EN = np.zeros((trace.model.num_experts, cluster.num_nodes))
    request, token, saved = [np.empty(0, np.int32)], [np.empty(0, np.int32)], [np.empty((0, cluster.num_nodes))]
    for batch in token_batches(trace, mixed=False):
        if not all(block.shard.has_tokens for block in batch.blocks):
            continue
        token_T = np.concatenate([block.column_T(TOKEN) for block in batch.blocks])[::every]
        number_T = np.arange(len(token_T), dtype=np.int32)
        cost_TN = np.zeros((len(token_T), cluster.num_nodes))
        for layer, coster in enumerate(costers):
            coster(np.ascontiguousarray(batch.ids_TK(layer)[::every]), number_T, cost_TN, unused_EN)
        known_T = token_T >= 0
        request.append(requests.request_E[batch.request_T[::every]][known_T])
        token.append(token_T[known_T])
        saved.append((cost_TN.mean(axis=1, keepdims=True) - cost_TN)[known_T] / len(costers))
    return TokenSavings(
        request_T=np.concatenate(request), token_T=np.concatenate(token), saved_TN=np.concatenate(saved)
    )
