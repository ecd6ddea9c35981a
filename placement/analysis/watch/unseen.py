"""Two workloads of different requests out of one: a map is fitted on one and judged on the other."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from placement.workload.workload import Workload

Keys = npt.NDArray[np.uint64]


def fitted_and_unseen(workload: Workload, known_Q: Keys | None) -> tuple[Workload, Workload]:
    """Half of the requests that are not known (those with odd keys) are unseen, all others are to be fitted.

    known_Q  keys of requests that the map in use was fitted to, uint64: judged on these it would look too good

    Of both what was sampled, with loads of their profiles. Co-activations are those of all requests: searches only
    start from them, they judge no map.
    """

    def unseen(key_N: Keys) -> npt.NDArray[np.bool_]:
        odd_N = key_N % np.uint64(2) == 1
        return np.asarray(odd_N if known_Q is None else odd_N & ~np.isin(key_N, known_Q))

    unseen_S, unseen_Q = unseen(workload.sample_owner_S), unseen(workload.profile_key_Q)
    return _only(workload, ~unseen_S, ~unseen_Q), _only(workload, unseen_S, unseen_Q)


def _only(workload: Workload, mine_S: npt.NDArray[np.bool_], mine_Q: npt.NDArray[np.bool_]) -> Workload:
    profile_QLE = workload.profile_QLE[mine_Q]
    load_LE = profile_QLE.sum(axis=0, dtype=np.int64)
    return replace(
        workload,
        num_tokens=int(load_LE.sum()) * workload.num_tokens // max(int(workload.load_LE.sum()), 1),
        load_LE=load_LE,
        sample_key_S=workload.sample_key_S[mine_S],
        sample_owner_S=workload.sample_owner_S[mine_S],
        sample_ids_SLK=workload.sample_ids_SLK[mine_S],
        profile_key_Q=workload.profile_key_Q[mine_Q],
        profile_QLE=profile_QLE,
    )
