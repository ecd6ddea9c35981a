"""Has the traffic changed? A permutation test on requests.

Tokens of one request resemble each other, so a chi-square test on tokens would see drift in any two sets of requests.
Requests are what may be exchanged: if nothing changed, which of them came earlier is a matter of chance, and the test
keeps its level exactly, however unequal requests are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError
from placement.workload import Workload

LEVEL, MIN_EFFECT, PERMUTATIONS = 0.01, 0.02, 499
CHANCE = 63  # of the permutations also give what chance makes of the effect
FEWEST_REQUESTS, FEWEST_NEW = 4, 8  # on either side; to fit a map to

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What the test found.

    p_value   chance of loads that differ so much if nothing changed; 1 where requests are too few to tell
    effect    share of assignments that go to other experts than before, mean over layers, less what chance alone makes
    drifted   p_value <= level and effect >= min_effect
    requests  how many were compared, earlier and now
    """

    p_value: float
    effect: float
    drifted: bool
    requests: tuple[int, int]

    def summary(self) -> dict[str, Any]:
        return {
            "p_value": round(self.p_value, 6),
            "effect": round(self.effect, 6),
            "drifted": self.drifted,
            "requests": list(self.requests),
        }


def drift_test(
    reference: Workload,
    present: Workload,
    *,
    level: float = LEVEL,
    min_effect: float = MIN_EFFECT,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Drift:
    """Compare the loads of the experts in two workloads, by the profiles of their requests.

    The statistic is the energy distance between both sets of requests (Székely and Rizzo 2004), by the Hellinger distance
    between their loads; its distribution without drift is that under random assignment of the requests to both sides.
    Requests that are in both count in neither.
    Deterministic in its arguments. Raises OptionError, and InputError for workloads that do not add.
    """
    for name, value in (("level", level), ("min_effect", min_effect)):
        if not 0 < value < 1:
            raise OptionError(f"{name}={value} must be between 0 and 1, both excluded")
    if permutations < 1 / level - 1:
        raise OptionError(f"permutations={permutations} cannot show level={level}; at least {1 / level - 1:.0f} can")
    reference.check_adds(present)
    before_QLE, now_QLE = _apart(reference, present)
    sizes = (len(before_QLE), len(now_QLE))
    if min(sizes) < FEWEST_REQUESTS:
        return Drift(p_value=1.0, effect=0.0, drifted=False, requests=sizes)
    profile_QLE = np.concatenate([before_QLE, now_QLE]).astype(np.float64)
    mine_Q = np.arange(sum(sizes)) < sizes[0]
    rng = np.random.default_rng([seed, 0xD21F7])
    side_RQ = np.stack([mine_Q, *(rng.permutation(mine_Q) for _ in range(permutations))]).astype(np.float64)
    energy_R = _energy_R(side_RQ, _distance_QQ(profile_QLE))
    # ties count against drift, whichever way their sums were rounded
    p_value = (1 + int(np.count_nonzero(energy_R[1:] >= energy_R[0] - 1e-9))) / (1 + permutations)
    moved_R = _moved_R(side_RQ[: 1 + CHANCE], profile_QLE)
    effect = float(moved_R[0] - moved_R[1:].mean())
    return Drift(p_value=p_value, effect=effect, drifted=p_value <= level and effect >= min_effect, requests=sizes)


def changed_at(reference: Workload, buckets: Sequence[Workload]) -> int:
    """How many of the oldest buckets still are as the reference: where the two sides of a cut differ most.

    A side of n requests against m others counts n m / (n + m) times their distance. 0 if no cut leaves enough requests.
    """
    key_Q, at_Q, profiles = reference.profile_key_Q, [np.zeros(len(reference.profile_key_Q))], [reference.profile_QLE]
    for number, bucket in enumerate(buckets, start=1):
        new_Q = ~np.isin(bucket.profile_key_Q, key_Q)
        key_Q = np.concatenate([key_Q, bucket.profile_key_Q[new_Q]])
        at_Q.append(np.full(int(new_Q.sum()), float(number)))
        profiles.append(bucket.profile_QLE[new_Q])
    first_Q = np.concatenate(at_Q)
    old_RQ = (first_Q <= np.arange(len(buckets))[:, None]).astype(np.float64)
    old_R = old_RQ.sum(axis=1)
    new_R = len(first_Q) - old_R
    enough_R = (old_R >= FEWEST_REQUESTS) & (new_R >= FEWEST_NEW)
    if not enough_R.any():
        return 0
    energy_R = _energy_R(old_RQ[enough_R], _distance_QQ(np.concatenate(profiles).astype(np.float64)))
    weighed_R = energy_R * (old_R * new_R / len(first_Q))[enough_R]
    return int(np.flatnonzero(enough_R)[weighed_R.argmax()])


def _apart(a: Workload, b: Workload) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Profiles of the requests that only one of the workloads has."""
    return (
        a.profile_QLE[~np.isin(a.profile_key_Q, b.profile_key_Q)],
        b.profile_QLE[~np.isin(b.profile_key_Q, a.profile_key_Q)],
    )


def _distance_QQ(profile_QLE: Floats) -> Floats:
    """Hellinger distance between the loads of two requests, over all layers together."""
    root_QD = np.sqrt(_shares(profile_QLE) / profile_QLE.shape[1]).reshape(len(profile_QLE), -1)
    alike_QQ = root_QD @ root_QD.T
    np.fill_diagonal(alike_QQ, 1.0)
    return np.asarray(np.sqrt(np.maximum(1.0 - alike_QQ, 0.0)))


def _energy_R(side_RQ: Floats, distance_QQ: Floats) -> Floats:
    """Energy distance between the requests of a side and the others, for every way to choose the side."""
    other_RQ = 1.0 - side_RQ
    mine_R, others_R = side_RQ.sum(axis=1), other_RQ.sum(axis=1)
    to_mine_RQ, to_others_RQ = side_RQ @ distance_QQ, other_RQ @ distance_QQ
    across_R = (to_mine_RQ * other_RQ).sum(axis=1) / (mine_R * others_R)
    within_R = (to_mine_RQ * side_RQ).sum(axis=1) / mine_R**2 + (to_others_RQ * other_RQ).sum(axis=1) / others_R**2
    return np.asarray(2 * across_R - within_R)


def _moved_R(mine_RQ: Floats, profile_QLE: Floats) -> Floats:
    """Share of assignments that differs between the loads of both sides, mean over layers."""
    total_LE = profile_QLE.sum(axis=0)
    side_RLE = (mine_RQ @ profile_QLE.reshape(len(profile_QLE), -1)).reshape(-1, *total_LE.shape)
    return np.asarray(0.5 * np.abs(_shares(side_RLE) - _shares(total_LE - side_RLE)).sum(axis=2).mean(axis=1))


def _shares(load_RLE: Floats) -> Floats:
    total_RL = load_RLE.sum(axis=2, keepdims=True)
    return np.divide(load_RLE, total_RL, out=np.zeros_like(load_RLE), where=total_RL > 0)
