"""Expert ids that are what the format promises, or the error that says which are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from placement.core.model import Model
from placement.errors import TraceError
from placement.support.kernel import kernel
from placement.traces.storage.stored_path import StoredPath
from placement.traces.trace import Block

OK, ID_OUT_OF_RANGE, DUPLICATE_ID = 0, 1, 2
_FAULTS = {
    ID_OUT_OF_RANGE: "has expert id {ids}, which is out of range; ids from 0 to {last} are allowed",
    DUPLICATE_ID: "has top-k set {ids}, which names an expert twice; the ids of a set must differ",
}


def checked_ids(model: Model, block: Block, layer: int) -> npt.NDArray[Any]:
    """`block.ids_TK(layer)`, or TraceError if an id is out of range or twice in a top-k set."""
    ids_TK = block.ids_TK(layer)
    fault, row = check_ids(ids_TK, model.num_experts)
    if fault != OK:
        token = block.span.start + (row if block.rows_T is None else int(block.rows_T[row]))
        raise fault_error(model, block.shard.path, token, layer, ids_TK[row].tolist(), fault)
    return ids_TK


def fault_error(
    model: Model, path: Path | StoredPath, token: int, layer: int, ids: list[int], fault: int
) -> TraceError:
    """The error for a fault that `check_ids` found in the top-k set `ids` of a token of the shard."""
    told = _FAULTS[fault].format(ids=ids, last=model.num_experts - 1)
    return TraceError(f"{path}: layer {model.layer_ids[layer]}, token {token} {told}; write the shard again")


@kernel
def check_ids(ids_TK: npt.NDArray[Any], num_experts: int) -> tuple[int, int]:
    """(fault, row of the fault) of the first top-k set that is not one."""
    for t in range(ids_TK.shape[0]):
        for k in range(ids_TK.shape[1]):
            if ids_TK[t, k] >= num_experts:
                return ID_OUT_OF_RANGE, t
            for j in range(k):
                if ids_TK[t, k] == ids_TK[t, j]:
                    return DUPLICATE_ID, t
    return OK, 0
