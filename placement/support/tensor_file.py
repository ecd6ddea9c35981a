"""Safetensors files as a header and raw bytes: any type of number, nothing loaded that is not asked for.

The library's `save` holds a copy of all arrays in memory, and what the library reads lies in memory whole.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.atomic_files import open_atomic
from placement.support.text_files import parse_json

DTYPES = {"u8": "U64", "u4": "U32", "i4": "I32", "f2": "F16", "u2": "U16", "i2": "I16", "u1": "U8"}  # in a file's order
ITEM_BYTES = {name: int(dtype[1:]) for dtype, name in DTYPES.items()}
LENGTH_BYTES = ALIGN = 8
FIRST_BYTES = 4096  # a header of ours is shorter
MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MOST_PER_BYTE = 2  # most numbers in a byte: the smallest types have four bits
LONGEST_NAME = 1000  # characters of a tensor's name


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """One tensor of a header: its bytes are `begin` to `end` of the data."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin

    @property
    def item_bytes(self) -> int:
        """Bytes of a number; 0 for types of less than a byte, and for empty tensors."""
        return self.num_bytes // max(prod(self.shape), 1)

    def is_sound(self) -> bool:
        numbers = prod(self.shape)
        size = ITEM_BYTES.get(self.dtype)
        fits = numbers <= MOST_PER_BYTE * self.num_bytes if size is None else numbers * size == self.num_bytes
        return fits and min(self.shape, default=0) >= 0 and len(self.name) <= LONGEST_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """`text` as it is in the file, and what it says: tensors in the order of their bytes, and the metadata."""

    text: bytes
    tensors: tuple[Tensor, ...]
    metadata: dict[str, Any]

    @property
    def data_begin(self) -> int:
        """Byte of the file at which the data begin."""
        return LENGTH_BYTES + len(self.text)


def read_header(read: Callable[[int, int], bytes], file_bytes: int) -> Header:
    """The header of a file of `file_bytes` bytes, of which `read(start, stop)` gives some.

    Raises:
        ValueError: the file is cut off, longer than its header says, or none of safetensors
    """
    first = read(0, FIRST_BYTES)
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    stop = LENGTH_BYTES + length
    if file_bytes < LENGTH_BYTES or not 2 <= length <= min(MOST_HEADER_BYTES, file_bytes - LENGTH_BYTES):
        raise ValueError("is not a safetensors file")
    header = parse_header(first[LENGTH_BYTES:stop] if stop <= len(first) else read(LENGTH_BYTES, stop))
    last = header.tensors[-1].end if header.tensors else 0
    if file_bytes != stop + last:
        raise ValueError(f"has {file_bytes} bytes where its header needs {stop + last}")
    return header


def parse_header(text: bytes) -> Header:
    """What a header says; its tensors follow one another without gaps. Raises ValueError."""
    try:
        document: dict[str, Any] = parse_json(text)
        metadata = dict(document.pop("__metadata__", {}))
        tensors = [
            Tensor(
                name=name,
                dtype=str(entry["dtype"]),
                shape=tuple(map(index, entry["shape"])),
                begin=index(entry["data_offsets"][0]),
                end=index(entry["data_offsets"][1]),
            )
            for name, entry in document.items()
        ]
        "".join(tensor.name + tensor.dtype for tensor in tensors).encode()  # halves of surrogate pairs are no names
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        raise ValueError("has a damaged header") from None
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    at = 0
    for tensor in tensors:
        if not (tensor.begin == at <= tensor.end and tensor.is_sound()):
            raise ValueError(f"has a damaged header at tensor {tensor.name[:LONGEST_NAME]}")
        at = tensor.end
    return Header(text=text, tensors=tuple(tensors), metadata=metadata)


def make_header(
    tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str] | None = None
) -> bytes:
    """The header of tensors (name, dtype, shape, bytes) that follow one another, filled up so that data is aligned."""
    document: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, dtype, shape, num_bytes in tensors:
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + num_bytes]}
        at += num_bytes
    header = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    return header + b" " * (-len(header) % ALIGN)


def with_length(header: bytes) -> bytes:
    """What a file begins with."""
    return len(header).to_bytes(LENGTH_BYTES, "little") + header


def write_tensors(
    path: str | Path, arrays: dict[str, npt.NDArray[Any]], metadata: dict[str, str] | None = None
) -> None:
    """Write the bytes of `safetensors.numpy.save`, whole or not at all, for dtypes of DTYPES. Raises OutputError."""
    order = list(DTYPES)
    names = sorted(arrays, key=lambda name: (order.index(arrays[name].dtype.str[1:]), name))
    entries = ((name, arrays[name]) for name in names)
    header = make_header(
        ((name, DTYPES[array.dtype.str[1:]], array.shape, array.nbytes) for name, array in entries), metadata
    )
    with open_atomic(path) as file:
        file.write(with_length(header))
        for name in names:
            little = np.ascontiguousarray(arrays[name], dtype=arrays[name].dtype.newbyteorder("<"))
            file.write(little.reshape(-1).view(np.uint8).data)
