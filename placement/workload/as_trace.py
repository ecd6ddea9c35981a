"""A workload's sampled tokens as a trace: what of a stream can be sent on when its traces are gone."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from placement.errors import InputError
from placement.support.atomic_files import make_folder
from placement.traces.format import RequestEntry
from placement.traces.storage.shard_writer import TokenPiece
from placement.traces.write import write_trace
from placement.workload.workload import Workload


def write_sample(workload: Workload, folder: Path) -> Path:
    """Write the tokens that `workload` sampled to a new `folder`, by their requests, whose ids are their keys.

    Positions and phases are lost: tokens are numbered within each request, all prefill. Raises InputError where nothing
    was sampled (counts alone), OutputError.
    """
    if not len(workload.sample_key_S):
        raise InputError("the workload has no sampled tokens: counts alone do not say them; give a trace")
    make_folder(folder)
    order = np.argsort(workload.sample_owner_S, kind="stable")
    owners, first_Q, request_T = np.unique(workload.sample_owner_S[order], return_index=True, return_inverse=True)
    piece = TokenPiece(
        ids_LTK=np.ascontiguousarray(workload.sample_ids_SLK[order].transpose(1, 0, 2)),
        request_T=request_T.astype(np.int32),
        position_T=(np.arange(len(order)) - first_Q[request_T]).astype(np.int32),
        phase_T=np.zeros(len(order), dtype=np.uint8),
    )
    requests = [RequestEntry(id=f"{owner:016x}") for owner in owners.tolist()]
    write_trace(folder, iter([piece]), model=workload.model, requests=requests)
    return folder
