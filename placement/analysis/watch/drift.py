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

from placement.core.choices import DRIFT_LEVEL, MIN_EFFECT
from placement.errors import OptionError
from placement.workload.workload import Workload

PERMUTATIONS = 499
CHANCE = 63  # so many permutations also say what effect chance alone has
FEWEST_OLD, FEWEST_NEW = 4, 8  # fewest requests before a cut, and since: a map is fitted to each side

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """What the test found.

    Attributes:
        p_value: Chance of requests that differ so much if nothing changed; 1 where requests are too few to tell.
        effect: Share of assignments that go to other experts since, mean over layers, less what chance alone makes.
        drifted: True if `p_value` is at most `level` and `effect` at least `min_effect`.
        old_buckets: How many of the buckets came before the cut at which the requests differ most.
        requests: How many came before and since.
    """

    p_value: float
    effect: float
    drifted: bool
    old_buckets: int
    requests: tuple[int, int]

    def summary(self) -> dict[str, Any]:
        """Plain data with the same keys everywhere."""
        return {
            "p_value": round(self.p_value, 6),
            "effect": round(self.effect, 6),
            "drifted": self.drifted,
            "requests": list(self.requests),
        }


def drift_test(
    reference: Workload,
    buckets: Sequence[Workload],
    *,
    level: float = DRIFT_LEVEL,
    min_effect: float = MIN_EFFECT,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Drift:
    """Is there a moment, in the reference or at the start of a bucket, since which requests are others?

    At every cut between the buckets the requests before it, those of the reference among them, are compared with those
    since by the energy distance (Székely and Rizzo 2004) between their loads, times n m / (n + m) for n requests and m.
    The statistic is the largest; its distribution without drift is that under random orders of the requests. A request
    counts once, where it came first. Deterministic in its arguments.

    Raises:
        OptionError: An option is out of range.
        InputError: The workloads do not add.
    """
    check_test(level, min_effect, permutations)
    for bucket in buckets:
        reference.check_adds(bucket)
    profile_QLE, bucket_Q = _in_order([reference, *buckets])
    old_C = (bucket_Q <= np.arange(len(buckets))[:, None]).sum(axis=1)  # requests before each cut
    cut_C = np.flatnonzero((old_C >= FEWEST_OLD) & (len(bucket_Q) - old_C >= FEWEST_NEW))
    if not len(cut_C):
        return Drift(p_value=1.0, effect=0.0, drifted=False, old_buckets=0, requests=(len(bucket_Q), 0))
    rng = np.random.default_rng([seed, 0xD21F7])
    order_RQ = np.stack([np.arange(len(bucket_Q)), *(rng.permutation(len(bucket_Q)) for _ in range(permutations))])
    distance_QQ = _distance_QQ(profile_QLE)
    energy_CR = np.stack([_energy_R((order_RQ < old).astype(np.float64), distance_QQ) for old in old_C[cut_C]])
    # ties count against drift, whichever way their sums were rounded
    p_value = (1 + int(np.count_nonzero(energy_CR.max(axis=0)[1:] >= energy_CR[:, 0].max() - 1e-9))) / (
        1 + permutations
    )
    best = int(cut_C[energy_CR[:, 0].argmax()])
    old = int(old_C[best])
    moved_R = _moved_R((order_RQ[: 1 + CHANCE] < old).astype(np.float64), profile_QLE)
    effect = float(moved_R[0] - moved_R[1:].mean())
    return Drift(
        p_value=p_value,
        effect=effect,
        drifted=p_value <= level and effect >= min_effect,
        old_buckets=best,
        requests=(old, len(bucket_Q) - old),
    )


def check_test(level: float, min_effect: float, permutations: int = PERMUTATIONS) -> None:
    """Raise OptionError unless the test can find anything."""
    for name, value in (("level", level), ("min_effect", min_effect)):
        if not 0 < value < 1:
            raise OptionError(f"{name}={value} must be between 0 and 1, both excluded")
    if permutations < max(1 / level - 1, CHANCE):
        need = max(round(1 / level - 1), CHANCE)
        raise OptionError(f"permutations={permutations} cannot show level={level}; give {need} or more")


def _in_order(parts: Sequence[Workload]) -> tuple[Floats, npt.NDArray[np.int64]]:
    """Profile of every request, float64 [Q, L, E], and the number of the first part that has it, ascending."""
    known = np.zeros(0, dtype=np.uint64)
    profiles, first = [], []
    for number, part in enumerate(parts):
        new_Q = ~np.isin(part.profile_key_Q, known)
        known = np.concatenate([known, part.profile_key_Q[new_Q]])
        profiles.append(part.profile_QLE[new_Q])
        first.append(np.full(int(new_Q.sum()), number))
    return np.concatenate(profiles).astype(np.float64), np.concatenate(first)


def _distance_QQ(profile_QLE: Floats) -> Floats:
    """Hellinger distance between the loads of two requests, over all layers together."""
    root_QD = np.sqrt(_shares(profile_QLE) / profile_QLE.shape[1]).reshape(len(profile_QLE), -1)
    alike_QQ = root_QD @ root_QD.T
    np.fill_diagonal(alike_QQ, 1.0)
    return np.asarray(np.sqrt(np.maximum(1.0 - alike_QQ, 0.0)))


def _energy_R(side_RQ: Floats, distance_QQ: Floats) -> Floats:
    """Energy distance of n requests of a side from the m others, times n m / (n + m), for every choice of the side."""
    other_RQ = 1.0 - side_RQ
    mine_R, others_R = side_RQ.sum(axis=1), other_RQ.sum(axis=1)
    to_mine_RQ, to_others_RQ = side_RQ @ distance_QQ, other_RQ @ distance_QQ
    across_R = (to_mine_RQ * other_RQ).sum(axis=1) / (mine_R * others_R)
    within_R = (to_mine_RQ * side_RQ).sum(axis=1) / mine_R**2 + (to_others_RQ * other_RQ).sum(axis=1) / others_R**2
    return np.asarray((2 * across_R - within_R) * mine_R * others_R / (mine_R + others_R))


def _moved_R(mine_RQ: Floats, profile_QLE: Floats) -> Floats:
    """Share of assignments that differs between the loads of both sides, mean over layers."""
    total_LE = profile_QLE.sum(axis=0)
    side_RLE = (mine_RQ @ profile_QLE.reshape(len(profile_QLE), -1)).reshape(-1, *total_LE.shape)
    return np.asarray(0.5 * np.abs(_shares(side_RLE) - _shares(total_LE - side_RLE)).sum(axis=2).mean(axis=1))


def _shares(load_RLE: Floats) -> Floats:
    total_RL = load_RLE.sum(axis=2, keepdims=True)
    return np.asarray(np.divide(load_RLE, total_RL, out=np.zeros_like(load_RLE), where=total_RL > 0))
