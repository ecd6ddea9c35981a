"""What routing looks like: load skew, co-activation lift, domain drift and consecutive overlap, layer by layer."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.traces.format import DRAFT

SHUFFLES = 8


def load_skew(load_LE: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """max / mean of the experts' loads, float64 [L]; 1 is perfectly even."""
    return np.asarray(load_LE.max(axis=1) / load_LE.mean(axis=1), dtype=np.float64)


def load_cv(load_LE: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Standard deviation / mean of the experts' loads, float64 [L]."""
    return np.asarray(load_LE.std(axis=1) / load_LE.mean(axis=1), dtype=np.float64)


def coactivation_lift(coact_LEE: npt.NDArray[np.int64]) -> list[float | None]:
    """How many times oftener than by chance the pairs that tokens visit are visited, of L layers; None without pairs.

        lift = sum_ab c_ab (c_ab - 1) / e_ab  /  sum_ab c_ab          over experts a != b

    c_ab are the tokens that visit both. e_ab = x_a x_b are the tokens that would, if pairs formed independently with
    the very same loads: x is fitted so that the rows of e sum to those of c (the diagonal is left out, because a top-k
    set names no expert twice). That is P(a,b) / (P(a) P(b)) but for the factor (K-1)/K and the loads that draws without
    replacement distort; so 1 is what independent draws give, whatever K and the loads. The weight c makes it the lift
    of a pair of an average token, and "- 1" takes off what counting noise adds to the square of a small count. Where
    tokens are so few that K^2 T is not well above E, the fitted loads follow the noise and lift comes out too low.
    """
    lift_L: list[float | None] = [None] * len(coact_LEE)
    for layer, coact_EE in enumerate(coact_LEE):
        seen_E = np.flatnonzero(coact_EE.sum(axis=1))
        if not len(seen_E):
            continue
        c = coact_EE[np.ix_(seen_E, seen_E)].astype(np.float64)
        x = _fit_independent(c.sum(axis=1))
        lift_L[layer] = float((c * np.maximum(c - 1, 0) / np.outer(x, x)).sum() / c.sum())
    return lift_L


def _fit_independent(row_E: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """x > 0 with x_a * (sum(x) - x_a) = row_a."""
    x = row_E / np.sqrt(row_E.sum())
    for _ in range(500):
        ratio = row_E / (x * (x.sum() - x))
        x *= np.sqrt(ratio)
        if np.abs(ratio - 1).max() < 1e-9:
            break
    return np.asarray(x, dtype=np.float64)


def domain_drift(
    profile_QLE: npt.NDArray[np.uint32], domain_Q: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]] | None:
    """(drift, chance), float64 [L] each; None where there are fewer than two domains.

    drift is the mean over domains, weighted by tokens, of the total-variation distance (0 to 1) between the domain's
    distribution of load over experts and that of all. Domains with few requests are far from the whole by mere luck;
    chance is the same measure when the domains are dealt anew to the requests (mean of 8 seeded deals), so only what is
    above it is drift proper. domain_Q: index of each request's domain, or -1, whose requests are left out.
    """
    known_Q = domain_Q >= 0
    profile_QLE, domain_Q = profile_QLE[known_Q], domain_Q[known_Q]
    if len(np.unique(domain_Q)) < 2:
        return None
    flat = profile_QLE.reshape(len(profile_QLE), -1).astype(np.float64)
    shape = (-1, *profile_QLE.shape[1:])
    generator = np.random.default_rng(0)
    dealt = [_drift(flat, generator.permutation(domain_Q), shape) for _ in range(SHUFFLES)]
    return _drift(flat, domain_Q, shape), np.mean(dealt, axis=0)


def _drift(
    flat: npt.NDArray[np.float64], domain_Q: npt.NDArray[np.int64], shape: tuple[int, ...]
) -> npt.NDArray[np.float64]:
    member = np.zeros((int(domain_Q.max()) + 1, len(flat)))
    member[domain_Q, np.arange(len(flat))] = 1
    load_DLE = (member[np.unique(domain_Q)] @ flat).reshape(shape)
    tokens_DL = load_DLE.sum(axis=2)
    whole_LE = load_DLE.sum(axis=0)
    whole_L = tokens_DL.sum(axis=0)
    apart_DL = np.abs(load_DLE / np.maximum(tokens_DL, 1)[..., None] - whole_LE / whole_L[:, None]).sum(axis=2) / 2
    return np.asarray((apart_DL * tokens_DL).sum(axis=0) / whole_L, dtype=np.float64)


def overlap_chance(load_LE: npt.NDArray[np.int64], size_L: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Share of its set that a token has in common with an unrelated token of the same loads, float64 [L].

    size_L: mean number of experts of a set.
    """
    share_LE = load_LE / load_LE.sum(axis=1, keepdims=True)
    return np.asarray((share_LE**2).sum(axis=1) * size_L, dtype=np.float64)


def previous_rows(
    request_T: npt.NDArray[np.int32], position_T: npt.NDArray[np.int32], phase_T: npt.NDArray[np.uint8]
) -> tuple[npt.NDArray[np.int64], int, int]:
    """Row of the token one position earlier in the same request or -1, int64 [T]; then the numbers of steps to a later
    position that skip some, and of steps that stay at the same position. Tokens may be in any order (engines interleave
    the requests of a batch). A draft that was rejected is no step: another token has its position."""
    order = np.lexsort((position_T, request_T))
    order = order[phase_T[order] != DRAFT]
    same = request_T[order[1:]] == request_T[order[:-1]]
    step = position_T[order[1:]] - position_T[order[:-1]]
    follows = same & (step == 1)
    previous_T = np.full(len(request_T), -1, dtype=np.int64)
    previous_T[order[1:][follows]] = order[:-1][follows]
    return previous_T, int(np.count_nonzero(same & (step > 1))), int(np.count_nonzero(same & (step == 0)))
