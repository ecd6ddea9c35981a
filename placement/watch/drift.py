"""Has the traffic changed? A permutation test on requests.

Tokens of one request resemble each other, so a chi-square test on tokens would see drift in any two sets of requests.
Requests are what may be exchanged: if nothing changed, which of them came earlier is a matter of chance, and the test
keeps its level exactly, however unequal requests are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError
from placement.workload import Workload

LEVEL, MIN_EFFECT, PERMUTATIONS = 0.01, 0.02, 499
FEWEST_REQUESTS = 4  # on either side
CHUNK = 64

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

    The statistic is the total variation between both shares of load, mean over layers; its distribution without drift
    is that under random assignment of the requests to both sides. Requests that are in both count in neither.
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
    shuffled_RQ = np.stack([mine_Q, *(rng.permutation(mine_Q) for _ in range(permutations))]).astype(np.float64)
    distance_R = np.concatenate(
        [_distance_R(shuffled_RQ[start : start + CHUNK], profile_QLE) for start in range(0, len(shuffled_RQ), CHUNK)]
    )
    # sums of whole numbers are exact, but shares round: what differs by less than that is equal
    as_far = distance_R[1:] >= distance_R[0] - 1e-12
    p_value = (1 + int(np.count_nonzero(as_far))) / (1 + permutations)
    effect = float(distance_R[0] - distance_R[1:].mean())
    return Drift(
        p_value=p_value, effect=effect, drifted=p_value <= level and effect >= min_effect, requests=sizes
    )


def _apart(a: Workload, b: Workload) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Profiles of the requests that only one of the workloads has."""
    return (
        a.profile_QLE[~np.isin(a.profile_key_Q, b.profile_key_Q)],
        b.profile_QLE[~np.isin(b.profile_key_Q, a.profile_key_Q)],
    )


def _distance_R(mine_RQ: Floats, profile_QLE: Floats) -> Floats:
    """Total variation between the requests of a side and the others, for every way to choose the side."""
    total_LE = profile_QLE.sum(axis=0)
    side_RLE = (mine_RQ @ profile_QLE.reshape(len(profile_QLE), -1)).reshape(-1, *total_LE.shape)
    return np.asarray(0.5 * np.abs(_shares(side_RLE) - _shares(total_LE - side_RLE)).sum(axis=2).mean(axis=1))


def _shares(load_RLE: Floats) -> Floats:
    total_RL = load_RLE.sum(axis=2, keepdims=True)
    return np.divide(load_RLE, total_RL, out=np.zeros_like(load_RLE), where=total_RL > 0)
