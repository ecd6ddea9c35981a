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

OK, ID_OUT_OF_RANGE, DUPLICATE_ID, ID_AFTER_END = 0, 1, 2, 3
_FAULTS = {
    ID_OUT_OF_RANGE: "has expert id {ids}, which is out of range; ids from 0 to {last} are allowed",
    DUPLICATE_ID: "has top-k set {ids}, which names an expert twice; the ids of a set must differ",
    ID_AFTER_END: "has top-k set {ids}, in which an id follows a -1; -1 is allowed from the end of a set alone",
}


def checked_ids(model: Model, block: Block, layer: int) -> npt.NDArray[Any]:
    """`block.ids_TK(layer)`, or TraceError if an id is out of range, twice in a top-k set, or behind its end."""
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


def no_token_error(path: Path | StoredPath, token: int) -> TraceError:
    """The error for a row of the shard that has an expert in no layer."""
    return TraceError(f"{path}: token {token} has no expert in any layer, so it is none; write the shard without it")


@kernel
def check_ids(ids_TK: npt.NDArray[Any], num_experts: int) -> tuple[int, int]:
    """(fault, row of the fault) of the first top-k set that is not one; of signed ids, -1 from its end are none."""
    for t in range(ids_TK.shape[0]):
        for k in range(ids_TK.shape[1]):
            if ids_TK[t, k] == -1:
                continue
            if ids_TK[t, k] < 0 or ids_TK[t, k] >= num_experts:
                return ID_OUT_OF_RANGE, t
            if k > 0 and ids_TK[t, k - 1] == -1:
                return ID_AFTER_END, t
            for j in range(k):
                if ids_TK[t, k] == ids_TK[t, j]:
                    return DUPLICATE_ID, t
    return OK, 0
