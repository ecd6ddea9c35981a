"""Workloads as named arrays: both sides of a trace in one safetensors file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from placement.core.model import Model
from placement.errors import TraceError
from placement.support.tensor_file import write_tensors
from placement.traces.checked import check_ids
from placement.traces.format import id_dtype
from placement.workload.counted import Counted, counted_of
from placement.workload.workload import Workload

SIDES = ("train", "held_out")
# field: dtypes that it may have in a file, shape letters
_FIELDS = {
    "load_LE": ("u4 u8", "LE"),
    "coact_LEE": ("u4 u8", "LEE"),
    "sample_key_S": ("u8", "S"),
    "sample_owner_S": ("u8", "S"),
    "sample_ids_SLK": ("u1 u2", "SLK"),
    "profile_key_Q": ("u8", "Q"),
    "profile_QLE": ("u2 u4", "QLE"),
}
_COUNTS = {"load_LE": np.int64, "coact_LEE": np.int64, "profile_QLE": np.uint32}  # dtypes in memory


def write_packed(path: Path, counted: Counted, metadata: dict[str, str] | None = None) -> None:
    """Write the arrays of every side, whole or not at all: counts in as many bits as are enough. Raises OutputError."""
    write_tensors(path, _packed(counted), metadata)


def _packed(counted: Counted) -> dict[str, npt.NDArray[Any]]:
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, side in zip(SIDES, counted.sides, strict=False):
        arrays[f"{name}.num_tokens"] = np.array([side.num_tokens], dtype=np.uint64)
        for field in _FIELDS:
            values = getattr(side, field)
            if field in _COUNTS:
                small, large = _FIELDS[field][0].split()
                values = values.astype(small if values.max(initial=0) <= np.iinfo(small).max else large)
            arrays[f"{name}.{field}"] = values
    return arrays


def read_packed(path: Path, model: Model, settings: dict[str, Any]) -> Counted:
    """What `write_packed` wrote of this model and these settings. Raises TraceError where the file holds anything
    else."""
    try:
        arrays = load_file(path)
        names = SIDES if settings["holdout"] else SIDES[:1]
        return counted_of(settings["holdout"], tuple(_side(arrays, name, model, settings) for name in names))
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:  # numpy has no F8
        told = getattr(error, "strerror", None) or error
        raise TraceError(f"cannot read {path}: {told}; remove it and count again") from None


def empty(model: Model, settings: dict[str, Any]) -> Counted:
    """The counts of no tokens."""
    layers, experts = model.num_layers, model.num_experts
    side = Workload(
        model=model,
        num_tokens=0,
        seed=settings["seed"],
        sample_tokens=settings["sample_tokens"],
        profile_requests=settings["profile_requests"],
        load_LE=np.zeros((layers, experts), dtype=np.int64),
        coact_LEE=np.zeros((layers, experts, experts), dtype=np.int64),
        sample_key_S=np.empty(0, dtype=np.uint64),
        sample_owner_S=np.empty(0, dtype=np.uint64),
        sample_ids_SLK=np.empty((0, layers, model.top_k), dtype=id_dtype(experts)),
        profile_key_Q=np.empty(0, dtype=np.uint64),
        profile_QLE=np.empty((0, layers, experts), dtype=np.uint32),
    )
    return counted_of(settings["holdout"], (side, side) if settings["holdout"] else (side,))


def _side(arrays: dict[str, npt.NDArray[Any]], name: str, model: Model, settings: dict[str, Any]) -> Workload:
    sizes = {"L": model.num_layers, "E": model.num_experts, "K": model.top_k}
    fields: dict[str, Any] = {}
    for field, (dtypes, letters) in _FIELDS.items():
        values = arrays[f"{name}.{field}"]
        shape = tuple(sizes.setdefault(letter, size) for letter, size in zip(letters, values.shape, strict=True))
        if values.shape != shape or values.dtype.str[1:] not in dtypes.split():
            raise ValueError(
                f"{name}.{field} has shape {list(values.shape)} and dtype {values.dtype}, not {list(shape)}"
            )
        fields[field] = values.astype(_COUNTS.get(field, values.dtype), copy=False)
    ids = fields["sample_ids_SLK"]
    if ids.dtype != id_dtype(model.num_experts) or ids.max(initial=0) >= model.num_experts:
        raise ValueError(f"{name}.sample_ids_SLK has ids that are out of range of {model.num_experts} experts")
    if sizes["S"] > settings["sample_tokens"] or sizes["Q"] > settings["profile_requests"]:
        raise ValueError(f"{name} has more sampled tokens or requests than its settings say")
    num_tokens = int(arrays[f"{name}.num_tokens"][0])
    _check_sums(name, model, num_tokens, fields)
    return Workload(
        model=model,
        num_tokens=num_tokens,
        seed=settings["seed"],
        sample_tokens=settings["sample_tokens"],
        profile_requests=settings["profile_requests"],
        **fields,
    )


def _check_sums(name: str, model: Model, num_tokens: int, fields: dict[str, Any]) -> None:
    """Raise ValueError unless the counts are those of so many top-k sets, and the samples in order."""
    load_LE, keys = fields["load_LE"], fields["profile_key_Q"]
    if (load_LE.sum(axis=1) != num_tokens * model.top_k).any():
        raise ValueError(f"{name}.load_LE is not that of {num_tokens} tokens")
    if (fields["coact_LEE"].sum(axis=2) != load_LE * (model.top_k - 1)).any():
        raise ValueError(f"{name}.coact_LEE and {name}.load_LE do not agree")
    tokens = fields["sample_key_S"]
    if (keys[1:] <= keys[:-1]).any() or (tokens[1:] < tokens[:-1]).any():
        raise ValueError(f"{name} has samples that are not in order")
    for layer in range(model.num_layers):
        if check_ids(np.ascontiguousarray(fields["sample_ids_SLK"][:, layer]), model.num_experts)[0]:
            raise ValueError(f"{name}.sample_ids_SLK names an expert twice in a set")
