"""Files of `torch.save`, read without their tensors: those stay on disk until they are asked for, a part at a time.

The document is loaded with `weights_only=True`, so nothing that a file names is ever called, and with `mmap=True`, so
no tensor is read. Where a tensor lies in the file follows from its address in the mapping, which is checked against
the zip directory; then the mapping is dropped, whose pages would count as memory.
"""

from __future__ import annotations

import math
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from placement.array_files import open_zip
from placement.errors import TraceError
from placement.traces.readers.base import reading

if TYPE_CHECKING:
    import torch

KINDS = ("int8", "uint8", "int16", "int32", "int64", "float16", "float32", "float64", "bool")
MEND = "give a file that torch.save wrote, of tensors, numbers, text, lists and dicts alone"
LOCAL_HEADER, NAME_LENGTHS = 30, 26
MOST_EMPTY = 1 << 20  # an axis of a tensor without values: it takes no bytes, but time


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """A tensor on disk: rows first, no gaps."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    offset_bytes: int

    def read(self, file: IO[bytes]) -> npt.NDArray[Any]:
        return self.part(file, 0, math.prod(self.shape)).reshape(self.shape)

    def part(self, file: IO[bytes], start: int, count: int) -> npt.NDArray[Any]:
        """`count` values from value `start` on. Raises ValueError on a truncated file."""
        file.seek(self.offset_bytes + start * self.dtype.itemsize)
        values = np.fromfile(file, self.dtype, count)
        if len(values) < count:
            raise ValueError("truncated: a tensor is not all there")
        return values


def open_document(path: Path) -> Any:
    """What `torch.save` saved, tensors as StoredTensor and lists of whole numbers as int64 arrays.

    Raises TraceError; never calls what a file names.
    """
    try:
        import torch
    except ImportError:
        raise TraceError(f"{path} is read with PyTorch; install expert-placement[runtime]") from None
    try:
        with reading(path, MEND):
            document = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            tensors = dict(_tensors(document))
            base = _base_address(path, list(tensors.values()))
            return _stored(path, document, base)
    except TraceError:
        raise
    except Exception as error:  # torch's reader fails on junk in ways of every kind
        text = str(error)
        if "weights_only" in text or "WeightsUnpickler" in text or "Unsupported" in text:
            named = next((line.strip() for line in text.splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
            raise TraceError(f"{path} asks to run code when loaded, which is refused ({named[:160]}); {MEND}") from None
        raise TraceError(f"cannot read {path}: {text.splitlines()[0] if text else error!r}; {MEND}") from None


def _tensors(document: Any) -> list[tuple[int, torch.Tensor]]:
    import torch

    found: list[tuple[int, torch.Tensor]] = []
    waiting = [document]
    while waiting:
        one = waiting.pop()
        if isinstance(one, torch.Tensor):
            found.append((id(one), one))
        elif isinstance(one, dict):
            waiting += one.values()
        elif isinstance(one, list | tuple):
            waiting += [inner for inner in one if not isinstance(inner, int | float | str)]
    return found


def _base_address(path: Path, tensors: list[torch.Tensor]) -> int:
    """Address that the first byte of the file is mapped to."""
    sizes = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    sizes = {address: size for address, size in sizes.items() if size}
    if not sizes:
        return 0
    places = {}
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        for member in archive.infolist():
            if member.file_size and "/data/" in member.filename:
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError("its tensors are compressed")
                file.seek(member.header_offset + NAME_LENGTHS)
                name, extra = struct.unpack("<HH", file.read(4))
                places[member.header_offset + LOCAL_HEADER + name + extra] = member.file_size
    base = min(sizes) - min(places, default=0)
    if any(places.get(address - base) != size for address, size in sizes.items()):
        raise ValueError("its tensors are not where its directory says")
    return base


def _stored(path: Path, one: Any, base: int) -> Any:
    import torch

    if isinstance(one, torch.Tensor):
        kind = str(one.dtype).removeprefix("torch.")
        if kind not in KINDS or one.layout != torch.strided:
            raise ValueError(f"it has a tensor of {one.dtype}; {', '.join(KINDS)} are read")
        if not one.numel() and max(one.shape) > MOST_EMPTY:
            raise ValueError(f"it has a tensor of shape {list(one.shape)}, which cannot be")
        if not one.is_contiguous():
            raise ValueError("it has a tensor that is a view of another; save tensor.contiguous()")
        return StoredTensor(
            shape=tuple(one.shape), dtype=np.dtype(kind), offset_bytes=one.data_ptr() - base if one.numel() else 0
        )
    if isinstance(one, dict):
        return {key: _stored(path, value, base) for key, value in one.items()}
    if isinstance(one, list | tuple):
        if one and all(type(inner) is int for inner in one):
            return np.array(one, dtype=np.int64)  # a fifth of the memory
        return [_stored(path, inner, base) for inner in one]
    return one


def mentions(path: Path, *keys: bytes) -> bool:
    """True if a torch file's document names all the keys; it is searched as text, not loaded."""
    try:
        with open_zip(path) as archive:
            name = next((one for one in archive.namelist() if one.endswith("/data.pkl")), None)
            if name is None:
                return False
            left, tail = set(keys), b""
            with archive.open(name) as file:
                while left and (chunk := file.read(1 << 20)):
                    left = {key for key in left if key not in tail + chunk}
                    tail = chunk[-64:]
            return not left
    except (OSError, ValueError):
        return False
