"""Expert ids that are what the format promises, or the error that says which are not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy.typing as npt

from placement.errors import TraceError
from placement.model import Model
from placement.traces import counting
from placement.traces.stored_path import StoredPath
from placement.traces.trace import Block

_FAULTS = {
    counting.ID_OUT_OF_RANGE: "has expert id {ids}, which is out of range; ids from 0 to {last} are allowed",
    counting.DUPLICATE_ID: "has top-k set {ids}, which names an expert twice; the ids of a set must differ",
}


def checked_ids(model: Model, block: Block, layer: int) -> npt.NDArray[Any]:
    """`block.ids_TK(layer)`, or TraceError if an id is out of range or twice in a top-k set."""
    ids_TK = block.ids_TK(layer)
    fault, row = counting.check_ids(ids_TK, model.num_experts)
    if fault != counting.OK:
        token = block.start + (row if block.rows_T is None else int(block.rows_T[row]))
        raise fault_error(model, block.shard.path, token, layer, ids_TK[row].tolist(), fault)
    return ids_TK


def fault_error(
    model: Model, path: Path | StoredPath, token: int, layer: int, ids: list[int], fault: int
) -> TraceError:
    """The error for a fault that `counting.check_ids` found in the top-k set `ids` of a token of the shard."""
    told = _FAULTS[fault].format(ids=ids, last=model.num_experts - 1)
    return TraceError(f"{path}: layer {model.layer_ids[layer]}, token {token} {told}; write the shard again")
