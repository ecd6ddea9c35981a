"""The mergeable statistics of any amount of trace: `a + b` is the workload of both traces together."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.errors import InputError
from placement.traces.format import joined_ids

SAMPLE_TOKENS = 16_384
PROFILE_REQUESTS = 1_024


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Counts are exact; the token sample and the request profiles are bounded and uniform.

    Both are bottom-k sketches: every token (request) has a pseudo-random 64-bit key that depends only on the seed, the
    request's id, the token's position and experts, and the smallest keys are kept. Merging is therefore exactly
    associative and commutative, and the sample of a merge is the sample of the concatenation.

    Attributes:
        num_tokens: Tokens counted.
        load_LE: Assignments of every expert, int64 [L, E].
        coact_LEE: Tokens that visit both experts, int64 [L, E, E]; symmetric, diagonal 0.
        sample_key_S: Keys of the sampled tokens, uint64 [S], ascending.
        sample_owner_S: Key of the request of each sampled token (see `profile_key_Q`), uint64 [S].
        sample_ids_SLK: The sampled tokens' top-k sets in all layers [S, L, K]: unsigned where all counted sets have K
            experts, else signed, with -1 from the end of short ones (see `placement.traces.format`).
        profile_key_Q: Keys of the sampled requests, uint64 [Q], ascending.
        profile_QLE: Assignments of the sampled requests, uint32 [Q, L, E].
    """

    model: Model
    num_tokens: int
    seed: int
    sample_tokens: int
    profile_requests: int
    load_LE: npt.NDArray[np.int64]
    coact_LEE: npt.NDArray[np.int64]
    sample_key_S: npt.NDArray[np.uint64]
    sample_owner_S: npt.NDArray[np.uint64]
    sample_ids_SLK: npt.NDArray[Any]
    profile_key_Q: npt.NDArray[np.uint64]
    profile_QLE: npt.NDArray[np.uint32]

    def check_adds(self, other: Workload) -> None:
        """Refuse a workload that cannot be added to this one.

        Raises:
            InputError: The two differ in the model, the seed or the size of their sketches.
        """
        if not self.model.same_routing(other.model):
            raise InputError(
                f"workloads of {self.model.name} and {other.model.name} cannot be added: other layers or experts"
            )
        mine = (self.seed, self.sample_tokens, self.profile_requests)
        theirs = (other.seed, other.sample_tokens, other.profile_requests)
        if mine != theirs:
            raise InputError(f"workloads with seed, sample and profile sizes {mine} and {theirs} cannot be added")

    def __add__(self, other: Workload) -> Workload:
        self.check_adds(other)
        key_S, owner_S, ids_SLK = smallest_keys(
            np.concatenate([self.sample_key_S, other.sample_key_S]),
            np.concatenate([self.sample_owner_S, other.sample_owner_S]),
            joined_ids([self.sample_ids_SLK, other.sample_ids_SLK]),
            self.sample_tokens,
        )
        owners, profiles = _merge_profiles(self, other)
        return replace(
            self,
            num_tokens=self.num_tokens + other.num_tokens,
            load_LE=self.load_LE + other.load_LE,
            coact_LEE=self.coact_LEE + other.coact_LEE,
            sample_key_S=key_S,
            sample_owner_S=owner_S,
            sample_ids_SLK=ids_SLK,
            profile_key_Q=owners,
            profile_QLE=profiles,
        )

    def thinned(self, sample_tokens: int) -> Workload:
        """What counting with so small a token sample would have given."""
        return replace(
            self,
            sample_tokens=sample_tokens,
            sample_key_S=self.sample_key_S[:sample_tokens],
            sample_owner_S=self.sample_owner_S[:sample_tokens],
            sample_ids_SLK=self.sample_ids_SLK[:sample_tokens],
        )

    def digest(self) -> str:
        """Names the content that was counted, whatever files it came from: "sha256:..."."""
        state = hashlib.sha256()
        for array in (self.load_LE, self.sample_key_S, self.sample_ids_SLK, self.profile_key_Q):
            state.update(np.ascontiguousarray(array).tobytes())
        return f"sha256:{state.hexdigest()}"


def pairs_bytes(model: Model) -> int:
    """Memory that pairs of experts take while two workloads are added."""
    return model.num_layers * model.num_experts**2 * 3 * np.dtype(np.int64).itemsize


def smallest_keys(
    key_S: npt.NDArray[np.uint64], owner_S: npt.NDArray[np.uint64], ids_SLK: npt.NDArray[Any], size: int
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64], npt.NDArray[Any]]:
    """The `size` sampled tokens of the smallest keys, keys ascending; of equal ones in the order of owner and experts.

    So the answer is the same in whatever order the tokens came.
    """
    order = np.argsort(key_S, kind="stable")
    sorted_S = key_S[order]
    again = np.flatnonzero(sorted_S[1:] == sorted_S[:-1])
    for start in again[np.diff(again, prepend=-2) > 1].tolist():
        stop = int(np.searchsorted(sorted_S, sorted_S[start], side="right"))
        if start < size:
            tied = order[start:stop].tolist()
            order[start:stop] = sorted(tied, key=lambda row: (int(owner_S[row]), ids_SLK[row].tobytes()))
    order = order[:size]
    return key_S[order], owner_S[order], ids_SLK[order]


def _merge_profiles(a: Workload, b: Workload) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
    """Profiles of a request seen by both sides are summed; of all, those with the smallest keys are kept."""
    owners = np.union1d(a.profile_key_Q, b.profile_key_Q)[: a.profile_requests]
    profiles = np.zeros((len(owners), *a.load_LE.shape), dtype=np.uint32)
    for side in (a, b):
        row = np.searchsorted(owners, side.profile_key_Q)
        for one in np.flatnonzero(row < len(owners)).tolist():  # all at once would copy them all
            profiles[row[one]] += side.profile_QLE[one]
    return owners, profiles
