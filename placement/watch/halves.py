"""Two workloads of different requests out of one: a map is fitted on one and judged on the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from placement.workload import Workload


def halves(workload: Workload) -> tuple[Workload, Workload]:
    """The requests whose key is even, and the others: what was sampled of them, with loads of their profiles.

    Co-activations are those of all requests: searches only start from them, they judge no map.
    """
    return _half(workload, 0), _half(workload, 1)


def _half(workload: Workload, parity: int) -> Workload:
    mine_S = workload.sample_owner_S % np.uint64(2) == parity
    mine_Q = workload.profile_key_Q % np.uint64(2) == parity
    profile_QLE = workload.profile_QLE[mine_Q]
    load_LE = profile_QLE.sum(axis=0, dtype=np.int64)
    return replace(
        workload,
        num_tokens=int(load_LE.sum(axis=1).max()) // workload.model.top_k,
        load_LE=load_LE,
        sample_key_S=workload.sample_key_S[mine_S],
        sample_owner_S=workload.sample_owner_S[mine_S],
        sample_ids_SLK=workload.sample_ids_SLK[mine_S],
        profile_key_Q=workload.profile_key_Q[mine_Q],
        profile_QLE=profile_QLE,
    )
