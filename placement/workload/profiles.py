"""Loads of single requests, of a trace that has few of them."""

from __future__ import annotations

from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from placement.support.parallel import run_tasks
from placement.traces.trace import Block, Trace


def profiles(trace: Trace, many: int, executor: Executor | None) -> npt.NDArray[np.int64] | None:
    """Assignments of each request that has tokens, int64 [Q, L, E]; None where there are `many` requests or more.

    Entries of one id are one request.
    """
    present = np.flatnonzero(trace.tokens_Q())
    rows: dict[str, int] = {}
    row_Q = np.full(len(trace.requests), -1, dtype=np.int64)
    for q in present.tolist():
        row_Q[q] = rows.setdefault(trace.requests[q].id, len(rows))
    if len(rows) >= many:
        return None
    model = trace.model
    profile_QLE = np.zeros((len(rows), model.num_layers, model.num_experts), dtype=np.int64)

    def add(block: Block, layer: int) -> None:
        ids_TK = block.ids_TK(layer).astype(np.int64)
        cell_TK = row_Q[block.request_T][:, None] * model.num_experts + ids_TK
        number = np.bincount(cell_TK[ids_TK >= 0], minlength=len(rows) * model.num_experts)
        profile_QLE[:, layer] += number.reshape(len(rows), -1)

    for block in trace.blocks():
        run_tasks(lambda layer, block=block: add(block, layer), range(model.num_layers), executor)  # type: ignore[misc]
    return profile_QLE
