"""The study of one layer: load, overlap, what the first part of a request foretells, what a home can serve."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from placement.analysis.info.kernels import pack_evenly

Float = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]
TOP_SHARE = 10


def gini(load_E: npt.NDArray[np.int64]) -> float:
    """Mean difference of two experts' loads over twice the mean: 0 all alike, near 1 one expert has all."""
    size, total = len(load_E), float(load_E.sum())
    return float(2 * (np.arange(1, size + 1) * np.sort(load_E)).sum() / (size * total) - (size + 1) / size)


def top_share(load_E: npt.NDArray[np.int64]) -> float:
    """Share of the assignments that go to the busiest tenth of the experts, rounded up."""
    busiest = math.ceil(len(load_E) / TOP_SHARE)
    return float(np.sort(load_E)[-busiest:].sum() / load_E.sum())


def group_imbalance(load_E: Float | npt.NDArray[np.int64], group_E: Labels, groups: int) -> float:
    """max / mean of the load of ranks or nodes."""
    load_G = np.bincount(group_E, weights=load_E, minlength=groups)
    return float(load_G.max() / load_G.mean())


def shared_with_others(count_QE: Float, label_Q: Labels, size: float) -> tuple[float | None, ...]:
    """Expected share of a token's set that another token visits too, drawn at random from: the same request, another
    request of the same domain, another domain. Mean over the tokens for which there is such another token; None where
    there is none. label_Q: index of the domain, or -1, which belongs to none. size: experts of a set, on average.
    """
    tokens_Q = count_QE.sum(axis=1) / size
    own_Q = (count_QE**2).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        same_request = _mean((own_Q - size * tokens_Q) / (tokens_Q - 1), tokens_Q, tokens_Q > 1)
        known = label_Q >= 0
        if not known.any():
            return same_request / size if same_request is not None else None, None, None
        member_DQ = (label_Q[None] == np.arange(int(label_Q.max()) + 1)[:, None]).astype(np.float64)
        load_DE, tokens_D = member_DQ @ count_QE, member_DQ @ tokens_Q
        mine_QE, mine_Q = load_DE[label_Q], tokens_D[label_Q]
        near_Q, far_Q = mine_Q - tokens_Q, tokens_D.sum() - mine_Q
        near = (count_QE * (mine_QE - count_QE)).sum(axis=1) / near_Q
        far = (count_QE * (load_DE.sum(axis=0) - mine_QE)).sum(axis=1) / far_Q
        found = (
            same_request,
            _mean(near, tokens_Q, known & (near_Q > 0)),
            _mean(far, tokens_Q, known & (far_Q > 0)),
        )
    return tuple(None if value is None else value / size for value in found)


def _mean(sum_Q: Float, tokens_Q: Float, there_Q: npt.NDArray[np.bool_]) -> float | None:
    """Of values that are sums over the K experts of the tokens of each request."""
    tokens = float(tokens_Q[there_Q].sum())
    return float(sum_Q[there_Q].sum() / tokens) if tokens else None


def foretelling(first_QE: Float, second_QE: Float, label_Q: Labels) -> tuple[float | None, ...]:
    """Pearson correlation over the experts of a request's first part with the second part of: itself, the other
    requests of its domain, those of other domains. Means over requests and over all pairs; None where there are none.
    Requests that lack a part, or visit all experts alike in one, are left out."""
    unit = [_standardised(part) for part in (first_QE, second_QE)]
    there = np.isfinite(unit[0] + unit[1]).all(axis=1)
    corr_QQ = unit[0][there] @ unit[1][there].T
    label_Q = label_Q[there]
    own = np.eye(len(label_Q), dtype=bool)
    known = (label_Q[:, None] >= 0) & (label_Q[None] >= 0)
    same = label_Q[:, None] == label_Q[None]
    return tuple(
        float(corr_QQ[mask].mean()) if mask.any() else None for mask in (own, known & same & ~own, known & ~same)
    )


def _standardised(count_QE: Float) -> Float:
    """Rows with mean 0 and length 1; NaN where all values are alike."""
    apart = count_QE - count_QE.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(apart / np.sqrt((apart**2).sum(axis=1, keepdims=True)))


def favourites(first_QE: Float, second_QE: Float, label_Q: Labels, room: int) -> Float:
    """Assignments of the second parts that a home serves if it holds the `room` experts that are most used by, in
    turn: all other requests; other requests of the domain; the request's own first part; its own second part, float64
    [4]. Only requests that have both parts and a domain count (all that have both parts, where there are no domains);
    ties are broken by what all others use."""
    count_QE = first_QE + second_QE
    others_QE = count_QE.sum(axis=0) - count_QE
    tie_QE = others_QE / np.maximum(others_QE.sum(axis=1, keepdims=True), 1) / 2  # below 1: it only breaks ties
    near_QE = np.zeros_like(count_QE)
    for label in range(int(label_Q.max(initial=-1)) + 1):
        mine = label_Q == label
        near_QE[mine] = count_QE[mine].sum(axis=0) - count_QE[mine]
    scores = (others_QE, near_QE + tie_QE, first_QE + tie_QE, second_QE + tie_QE)
    held = []
    for score_QE in scores:
        chosen = np.argsort(-score_QE, axis=1, kind="stable")[:, :room]
        held.append(np.take_along_axis(second_QE, chosen, axis=1).sum())
    return np.array(held)


def balance_by_domain(count_QE: Float, label_Q: Labels, num_ranks: int) -> tuple[float, float] | None:
    """Rank imbalance of a domain's traffic under one map for all, and under a map of its own: experts are packed by
    load alone, on half of the requests of every domain, and measured on the other half; both ways, mean over domains
    by tokens. None with fewer than two domains, or one rank."""
    labels = np.unique(label_Q[label_Q >= 0])
    if len(labels) < 2 or num_ranks < 2:
        return None
    half_Q = np.zeros(len(label_Q), dtype=np.int64)
    for label in labels.tolist():
        mine = np.flatnonzero(label_Q == label)
        half_Q[mine] = np.arange(len(mine)) % 2
    load_HDE = np.array(
        [[count_QE[(label_Q == label) & (half_Q == half)].sum(axis=0) for label in labels] for half in (0, 1)]
    )
    told = np.zeros((2, 2, len(labels)))
    for half in (0, 1):
        shared_E = pack_evenly(load_HDE[half].sum(axis=0), num_ranks)
        for domain in range(len(labels)):
            seen_E, new_E = load_HDE[half, domain], load_HDE[1 - half, domain]
            if new_E.any():
                told[half, 0, domain] = group_imbalance(new_E, shared_E, num_ranks)
                told[half, 1, domain] = group_imbalance(new_E, pack_evenly(seen_E, num_ranks), num_ranks)
    weight_HD = load_HDE[::-1].sum(axis=2)
    shared, own = (told * weight_HD[:, None]).sum(axis=(0, 2)) / weight_HD.sum()
    return float(shared), float(own)
