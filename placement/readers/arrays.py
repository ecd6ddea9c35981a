"""Plain NumPy arrays with documented names, a file or a folder of files.

`.npz`: `expert_ids` [T, L, K] of whole numbers, and beside it what is known of `expert_weights` [T, L, K], `request`,
`position`, `phase`, `token` (ids) [T], `layer_ids` [L], `num_experts` and `model`. `.npy`: `expert_ids` of one request
alone.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import MOST_LAYERS
from placement.errors import TraceError
from placement.readers.base import BATCH_TOKENS, Batch, ReadOptions, Recording, files_of, model_name, reading
from placement.readers.request_batches import LAST_POSITION, half_weights, layers_first, request_batches, whole_column
from placement.readers.token_ids import known_ids
from placement.support.array_files import ArrayStream, open_array, open_zip
from placement.traces.format import DRAFT, TOKEN, RequestEntry

PATTERNS = ("*.npz", "*.npy")
IDS, WEIGHTS = "expert_ids", "expert_weights"
COLUMNS = ("request", "position", "phase")
KINDS = {WEIGHTS: "f", "request": "iuSU"}  # others are whole numbers
MEND = f"save np.savez(path, {IDS}=array) of whole numbers [tokens, layers, top-k]"
TINY = 1 << 16  # bytes of layer_ids, num_experts or model


class Arrays:
    name = "arrays"
    title = "NumPy arrays"

    def sniff(self, path: Path) -> str | None:
        file = next(iter(files_of(path, *PATTERNS)), None)
        try:
            if file is not None and file.suffix == ".npz":
                with open_zip(file) as archive:
                    return f"{file.name} has the array {IDS}" if f"{IDS}.npy" in archive.namelist() else None
            if file is not None and file.suffix == ".npy":
                with file.open("rb") as stream:
                    array = open_array(stream)
                if len(array.shape) == 3 and array.dtype.kind in "iu" and array.dtype not in (np.uint8, np.uint16):
                    return f"{file.name} is an array [tokens, layers, top-k] of {array.dtype}"
        except (OSError, ValueError):
            pass
        return None

    def read(self, path: Path, options: ReadOptions) -> Recording:
        files = files_of(path, *PATTERNS)
        if not files:
            raise TraceError(f"{path} has no {' or '.join(PATTERNS)}; {MEND}")
        num_layers, told, names = _told(files[0])
        layer_ids, experts = told.get("layer_ids"), told.get("num_experts")
        if layer_ids is not None and (layer_ids.shape != (num_layers,) or layer_ids.dtype.kind not in "iu"):
            raise TraceError(
                f"{files[0]}: layer_ids has shape {list(layer_ids.shape)}; {num_layers} whole numbers are needed"
            )
        if experts is not None and (experts.size != 1 or experts.dtype.kind not in "iu"):
            raise TraceError(f"{files[0]}: num_experts must be one whole number; it has shape {list(experts.shape)}")
        if layer_ids is None:
            layer_ids = np.array(options.layer_ids or range(num_layers))
        return Recording(
            model=str(told.get("model", model_name(path))),
            layer_ids=tuple(layer_ids.tolist()),
            num_experts=None if experts is None else int(experts.reshape(())),
            batches=lambda: (batch for file in files for batch in _batches(file)),
            notes=[f"no {name} is told" for name in COLUMNS if name not in names],
        )


def _told(path: Path) -> tuple[int, dict[str, npt.NDArray[Any]], set[str]]:
    """(layers, what a file tells of the model, names of its arrays)."""
    with reading(path, MEND):
        if path.suffix == ".npy":
            with path.open("rb") as file:
                return _checked(path, IDS, open_array(file), 3).shape[1], {}, {IDS}
        with open_zip(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            if IDS not in names:
                raise TraceError(f"{path} has no array {IDS!r}; it has {', '.join(sorted(names)) or 'none'}; {MEND}")
            with archive.open(f"{IDS}.npy") as member:
                num_layers = _checked(path, IDS, open_array(member), 3).shape[1]
            small = [name for name in ("layer_ids", "num_experts", "model") if name in names]
            return num_layers, {name: _small(path, archive, name) for name in small}, names


def _batches(path: Path) -> Iterator[Batch]:
    with reading(path, MEND), ExitStack() as stack:
        if path.suffix == ".npy":
            array = _checked(path, IDS, open_array(stack.enter_context(path.open("rb"))), 3)
            yield from request_batches(str(path), path.stem, array.chunks(BATCH_TOKENS), prompt_tokens=None)
            return
        archive = stack.enter_context(open_zip(path))
        names = set(archive.namelist())
        arrays = {
            name: open_array(stack.enter_context(archive.open(f"{name}.npy")))
            for name in (IDS, WEIGHTS, *COLUMNS, TOKEN)
            if f"{name}.npy" in names
        }
        whole = _checked(path, IDS, arrays[IDS], 3).shape
        for name, array in arrays.items():
            if array.shape != (whole if name in (IDS, WEIGHTS) else whole[:1]):
                raise TraceError(f"{path}: {name} has shape {list(array.shape)}, {IDS} has {list(whole)}; {MEND}")
            _checked(path, name, array, len(array.shape))
        start = 0
        streams = {name: array.chunks(BATCH_TOKENS) for name, array in arrays.items()}
        for ids_TLK in streams.pop(IDS):
            yield _batch(path, ids_TLK, {name: next(stream) for name, stream in streams.items()}, start)
            start += len(ids_TLK)


def _batch(path: Path, ids_TLK: npt.NDArray[Any], found: dict[str, npt.NDArray[Any]], start: int) -> Batch:
    count = len(ids_TLK)
    owners, request_T = np.unique(found.get("request", np.full(count, path.stem)), return_inverse=True)
    names = [one.decode(errors="replace") if isinstance(one, bytes) else str(one) for one in owners.tolist()]
    weights = found.get(WEIGHTS)
    return Batch(
        where=str(path),
        ids_LTK=layers_first(ids_TLK),
        requests=tuple(RequestEntry(id=name) for name in names),
        request_T=request_T.astype(np.int32),
        position_T=whole_column(found.get("position", np.arange(start, start + count)), "position", LAST_POSITION),
        phase_T=whole_column(found.get("phase", np.zeros(count, dtype=np.uint8)), "phase", DRAFT).astype(np.uint8),
        weights_LTK=None if weights is None else half_weights(weights),
        token_T=known_ids(found[TOKEN]) if TOKEN in found else None,
    )


def _small(path: Path, archive: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    with archive.open(f"{name}.npy") as file:
        array = open_array(file)
        if array.num_bytes > TINY:
            raise TraceError(f"{path}: {name} takes {array.num_bytes} bytes; {TINY} are allowed")
        return array.whole(TINY)


def _checked(path: Path, name: str, array: ArrayStream, dimensions: int) -> ArrayStream:
    layers = array.shape[1] if name == IDS and len(array.shape) > 1 else 0
    if len(array.shape) != dimensions or array.dtype.kind not in KINDS.get(name, "iu") or layers > MOST_LAYERS:
        raise TraceError(f"{path}: {name} has shape {list(array.shape)} and dtype {array.dtype}; {MEND}")
    return array
