"""Some of a workload's requests, in one of its layers, as a workload of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.workload.workload import Workload


def of_requests(workload: Workload, mine_Q: npt.NDArray[np.bool_], layer: int) -> Workload:
    """What counting these requests would have given, but from the sampled tokens that the workload has of them.

    Pairs of experts are those of the sampled tokens too. Loads are exact.

    Args:
        workload: A workload that has the profile of all of its requests.
        mine_Q: Which of the profiled requests to take, bool [Q].
        layer: Position of the layer to take.
    """
    mine_S = np.isin(workload.sample_owner_S, workload.profile_key_Q[mine_Q])
    ids_SLK = workload.sample_ids_SLK[mine_S, layer : layer + 1]
    profile_QLE = workload.profile_QLE[mine_Q, layer : layer + 1]
    return replace(
        workload,
        model=replace(workload.model, layer_ids=workload.model.layer_ids[layer : layer + 1]),
        num_tokens=int(mine_S.sum()),
        load_LE=profile_QLE.sum(axis=0, dtype=np.int64),
        coact_LEE=_pairs_EE(ids_SLK[:, 0], workload.model.num_experts)[None],
        sample_key_S=workload.sample_key_S[mine_S],
        sample_owner_S=workload.sample_owner_S[mine_S],
        sample_ids_SLK=ids_SLK,
        profile_key_Q=workload.profile_key_Q[mine_Q],
        profile_QLE=profile_QLE,
    )


def _pairs_EE(ids_SK: npt.NDArray[Any], num_experts: int) -> npt.NDArray[np.int64]:
    """Tokens that visit both experts, int64 [E, E]; diagonal 0."""
    wide_SK = np.where(ids_SK < 0, num_experts, ids_SK.astype(np.int64))  # places of short sets are nobody's
    row = num_experts + 1
    pair = (wide_SK[:, :, None] * row + wide_SK[:, None, :]).ravel()
    pairs_EE = np.bincount(pair, minlength=row * row).reshape(row, row)[:num_experts, :num_experts]
    np.fill_diagonal(pairs_EE, 0)
    return np.ascontiguousarray(pairs_EE, dtype=np.int64)
