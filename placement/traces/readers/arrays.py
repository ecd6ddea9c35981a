"""Plain NumPy arrays with documented names.

`.npz`: `expert_ids` [T, L, K] of whole numbers, and beside it what is known of `expert_weights` [T, L, K], `request`,
`position`, `phase` [T], `layer_ids` [L], `num_experts` and `model`. `.npy`: `expert_ids` of one request alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.traces.format import RequestEntry
from placement.traces.readers.base import BATCH_TOKENS, Batch, ReadOptions, Recording, reading
from placement.traces.readers.npy_stream import ArrayStream, open_array
from placement.traces.readers.requests import layers_first, request_batches

IDS, WEIGHTS = "expert_ids", "expert_weights"
COLUMNS = ("request", "position", "phase")
KINDS = {WEIGHTS: "f", "request": "iuSU"}  # others are whole numbers
MEND = f"save np.savez(path, {IDS}=array) of whole numbers [tokens, layers, top-k]"
TINY = 1 << 16  # values of layer_ids, num_experts and model together


class Arrays:
    name = "arrays"
    title = "NumPy arrays"

    def sniff(self, path: Path) -> str | None:
        try:
            if path.suffix == ".npz" and path.is_file():
                with zipfile.ZipFile(path) as archive:
                    return f"it has the array {IDS}" if f"{IDS}.npy" in archive.namelist() else None
            if path.suffix == ".npy" and path.is_file():
                with path.open("rb") as file:
                    array = open_array(file)
                if len(array.shape) == 3 and array.dtype.kind in "iu" and array.dtype not in (np.uint8, np.uint16):
                    return f"it is an array [tokens, layers, top-k] of {array.dtype}"
        except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError):
            pass
        return None

    def read(self, path: Path, options: ReadOptions) -> Recording:
        if path.suffix == ".npz":
            return _read_npz(path, options)
        with reading(path, MEND), path.open("rb") as file:
            shape = _checked(path, IDS, open_array(file), 3, "iu").shape
        return Recording(
            model=path.stem,
            layer_ids=options.layer_ids or tuple(range(shape[1])),
            batches=lambda: _npy_batches(path),
            notes=["a .npy is one request: requests cannot be held out", "phases are unknown: all is called prefill"],
        )


def _npy_batches(path: Path) -> Iterator[Batch]:
    with reading(path, MEND), path.open("rb") as file:
        yield from request_batches(str(path), path.stem, open_array(file).chunks(BATCH_TOKENS), prompt_tokens=None)


def _read_npz(path: Path, options: ReadOptions) -> Recording:
    with reading(path, MEND), zipfile.ZipFile(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist()}
        if IDS not in names:
            raise TraceError(f"{path} has no array {IDS!r}; it has {', '.join(sorted(names)) or 'none'}; {MEND}")
        with archive.open(f"{IDS}.npy") as file:
            num_layers = _checked(path, IDS, open_array(file), 3, "iu").shape[1]
        layer_ids = _small(path, archive, "layer_ids", names)
        experts = _small(path, archive, "num_experts", names)
        model = _small(path, archive, "model", names)
    if layer_ids is not None and (layer_ids.shape != (num_layers,) or layer_ids.dtype.kind not in "iu"):
        raise TraceError(f"{path}: layer_ids has shape {list(layer_ids.shape)}; {num_layers} whole numbers are needed")
    if experts is not None and (experts.size != 1 or experts.dtype.kind not in "iu"):
        raise TraceError(f"{path}: num_experts must be one whole number; it has shape {list(experts.shape)}")
    return Recording(
        model=path.stem if model is None else str(model),
        layer_ids=options.layer_ids or tuple(range(num_layers)) if layer_ids is None else tuple(layer_ids.tolist()),
        num_experts=None if experts is None else int(experts.reshape(())),
        batches=lambda: _npz_batches(path),
        notes=[f"no {name} is told" for name in COLUMNS if name not in names],
    )


def _npz_batches(path: Path) -> Iterator[Batch]:
    with reading(path, MEND), ExitStack() as stack:
        archive = stack.enter_context(zipfile.ZipFile(path))
        names = set(archive.namelist())
        arrays = {
            name: open_array(stack.enter_context(archive.open(f"{name}.npy")))
            for name in (IDS, WEIGHTS, *COLUMNS)
            if f"{name}.npy" in names
        }
        _checked(path, IDS, arrays[IDS], 3, "iu")
        for name, array in arrays.items():
            whole = arrays[IDS].shape
            if array.shape != (whole if name in (IDS, WEIGHTS) else whole[:1]):
                raise TraceError(f"{path}: {name} has shape {list(array.shape)}, {IDS} has {list(whole)}; {MEND}")
            _checked(path, name, array, len(array.shape), KINDS.get(name, "iu"))
        start = 0
        streams = {name: array.chunks(BATCH_TOKENS) for name, array in arrays.items()}
        for ids_TLK in streams.pop(IDS):
            found = {name: next(stream) for name, stream in streams.items()}
            yield _batch(str(path), ids_TLK, found, start)
            start += len(ids_TLK)


def _batch(where: str, ids_TLK: npt.NDArray[Any], found: dict[str, npt.NDArray[Any]], start: int) -> Batch:
    count = len(ids_TLK)
    owners, request_T = np.unique(found.get("request", np.zeros(count, dtype=np.int64)), return_inverse=True)
    weights = found.get(WEIGHTS)
    names = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in owners.tolist()]
    return Batch(
        where=where,
        ids_LTK=layers_first(ids_TLK),
        requests=tuple(RequestEntry(id=name) for name in names),
        request_T=request_T.astype(np.int32),
        position_T=found.get("position", np.arange(start, start + count)).astype(np.int32),
        phase_T=found.get("phase", np.zeros(count)).astype(np.uint8),
        weights_LTK=None if weights is None else weights.transpose(1, 0, 2).astype(np.float16),
    )


def _small(path: Path, archive: zipfile.ZipFile, name: str, names: set[str]) -> npt.NDArray[Any] | None:
    if name not in names:
        return None
    with archive.open(f"{name}.npy") as file:
        array = open_array(file)
        size = array.dtype.itemsize * int(np.prod(array.shape, dtype=np.int64))
        if size > TINY:
            raise TraceError(f"{path}: {name} takes {size} bytes; {TINY} are allowed")
        return np.frombuffer(file.read(size), dtype=array.dtype).reshape(array.shape)


def _checked(path: Path, name: str, array: ArrayStream, dimensions: int, kinds: str) -> ArrayStream:
    if len(array.shape) != dimensions or array.dtype.kind not in kinds:
        raise TraceError(f"{path}: {name} has shape {list(array.shape)} and dtype {array.dtype}; {MEND}")
    return array
