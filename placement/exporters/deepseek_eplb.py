"""The tensors of DeepSeek's EPLB, as `rebalance_experts` returns them, for engines and scripts that are built on it.

phy2log int64 [L, P]; log2phy int64 [L, E, most copies], slots ascending, then -1; logcnt int64 [L, E]. MoE layers only.
"""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from placement.core.placement import Placement, check_same_slots
from placement.errors import MapError
from placement.exporters.base import DEFAULTS, Export, ExportOptions, FileMap
from placement.exporters.imports import only_keys, whole_array
from placement.exporters.torch_save import torch_bytes, torch_dict
from placement.support.array_files import read_arrays

NAMES = ("phy2log", "log2phy", "logcnt")


class DeepSeekEPLB:
    name = "deepseek-eplb"
    suffixes = (".safetensors", ".npz", ".pt")
    takes_load = False
    replica_choices: tuple[str, ...] = ()
    transport = "node"

    def export(self, placement: Placement, options: ExportOptions = DEFAULTS) -> Export:
        check_same_slots(placement, "a tensor phy2log")
        tensors = eplb_tensors(placement.engine_LP().astype(np.int64), placement.model.num_experts)
        if options.suffix == ".pt":
            content = torch_bytes(tensors)
        elif options.suffix == ".npz":
            buffer = io.BytesIO()
            np.savez(buffer, **tensors)  # type: ignore[arg-type]
            content = buffer.getvalue()
        else:
            content = safetensors.numpy.save(tensors)
        return Export(
            content=content,
            hints=(
                f"use it with: num_replicas={placement.num_slots} num_nodes={placement.num_nodes} "
                f"num_gpus={placement.num_ranks}; slot p is on GPU p // {placement.slots_per_gpu}",
                f"redundant experts: {placement.num_redundant} a layer",
                "replica choice: that of whoever uses log2phy; by chance is --replica-choice uniform, a copy of the "
                "own node first is local-first",
                f"the {placement.model.num_layers} rows are MoE layers {placement.model.layers_said}",
            ),
        )

    def read(self, content: bytes, suffix: str) -> FileMap:
        arrays = only_keys(_arrays(content, suffix), *NAMES)
        phy2log = whole_array(arrays["phy2log"], "phy2log")
        log2phy, logcnt = whole_array(arrays["log2phy"], "log2phy", ndim=3), whole_array(arrays["logcnt"], "logcnt")
        num_experts = logcnt.shape[1]
        if phy2log.min() < 0 or phy2log.max() >= num_experts:
            bad = phy2log.min() if phy2log.min() < 0 else phy2log.max()
            raise MapError(f"phy2log holds id {bad}; ids from 0 to {num_experts - 1} are allowed")
        copies_LE = np.stack([np.bincount(row, minlength=num_experts) for row in phy2log])
        same = np.array_equal(copies_LE, logcnt) and log2phy.shape == (*copies_LE.shape, copies_LE.max())
        if not same or not np.array_equal(
            np.sort(log2phy, axis=2), np.sort(eplb_tensors(phy2log, num_experts)["log2phy"], axis=2)
        ):
            raise MapError("log2phy and logcnt are not those of phy2log; write all three from one map")
        return FileMap(rows=list(phy2log), num_experts=num_experts)


def eplb_tensors(phy2log_LP: npt.NDArray[np.int64], num_experts: int) -> dict[str, npt.NDArray[np.int64]]:
    """The three tensors of a map."""
    layers, slots = phy2log_LP.shape
    logcnt_LE = np.stack([np.bincount(row, minlength=num_experts) for row in phy2log_LP]).astype(np.int64)
    log2phy = np.full((layers, num_experts, int(logcnt_LE.max())), -1, dtype=np.int64)
    order_LP = np.argsort(phy2log_LP, axis=1, kind="stable")
    expert_LP = np.take_along_axis(phy2log_LP, order_LP, axis=1)
    first_LE = np.cumsum(logcnt_LE, axis=1) - logcnt_LE
    copy_LP = np.arange(slots) - np.take_along_axis(first_LE, expert_LP, axis=1)
    log2phy[np.arange(layers)[:, None], expert_LP, copy_LP] = order_LP
    return {"phy2log": phy2log_LP, "log2phy": log2phy, "logcnt": logcnt_LE}


def _arrays(content: bytes, suffix: str) -> dict[str, Any]:
    if suffix == ".pt":
        return torch_dict(content)
    try:
        if suffix == ".safetensors":
            return dict(safetensors.numpy.load(content))
        return dict(read_arrays(io.BytesIO(content)))
    except (SafetensorError, ValueError, KeyError, TypeError, AttributeError, MemoryError) as error:
        raise MapError(f"it is not a {suffix} file of numbers: {error}") from None
