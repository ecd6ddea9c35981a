"""Safetensors files as a header and raw bytes: any type of number, nothing loaded that is not asked for."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import prod
from operator import index
from pathlib import Path
from typing import Any, BinaryIO

from placement.errors import InputError
from placement.support.text_files import parse_json

LENGTH_BYTES = 8
MOST_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MOST_PER_BYTE = 2  # numbers: the smallest types have four bits
LONGEST_NAME = 1000  # of a tensor
CHUNK_BYTES = 4 << 20
ALIGN = 8


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


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsFile:
    """`header` as it is in the file, `tensors` in the order of their bytes."""

    path: Path
    header: bytes
    tensors: tuple[Tensor, ...]

    def chunks(self, begin: int, end: int) -> Iterator[bytes]:
        """Bytes `begin` to `end` of the data, a few megabytes at a time. Raises InputError."""
        start = LENGTH_BYTES + len(self.header)
        try:
            with self.path.open("rb", buffering=0) as file:
                for at in range(begin, end, CHUNK_BYTES):
                    wanted = min(CHUNK_BYTES, end - at)
                    chunk = os.pread(file.fileno(), wanted, start + at)
                    while len(chunk) < wanted:  # a signal or a network file system may cut a read short
                        more = os.pread(file.fileno(), wanted - len(chunk), start + at + len(chunk))
                        if not more:
                            raise InputError(f"{self.path} became shorter while it was read; fetch it again")
                        chunk += more
                    yield chunk
        except OSError as error:
            raise InputError(f"cannot read {self.path}: {error.strerror}") from None


def open_safetensors(path: Path) -> SafetensorsFile:
    """Read and check the header. Raises InputError for a file that is cut off or none of safetensors."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(LENGTH_BYTES), "little")
            if size < LENGTH_BYTES or not 2 <= length <= min(MOST_HEADER_BYTES, size - LENGTH_BYTES):
                raise InputError(
                    f"{path} is not a safetensors file; fetch it again (a pointer of git-lfs is not enough)"
                )
            header = file.read(length)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    tensors = parse_header(header, path)
    last = tensors[-1].end if tensors else 0
    if size != LENGTH_BYTES + length + last:
        raise InputError(
            f"{path} has {size} bytes where its header needs {LENGTH_BYTES + length + last}; fetch it again"
        )
    return SafetensorsFile(path=path, header=header, tensors=tensors)


def parse_header(header: bytes, path: Path) -> tuple[Tensor, ...]:
    """The tensors in the order of their bytes, which follow one another without gaps."""
    try:
        document: dict[str, Any] = parse_json(header)
        document.pop("__metadata__", None)
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
        raise InputError(f"{path} has a damaged header; fetch it again") from None
    tensors.sort(key=lambda tensor: (tensor.begin, tensor.end))
    at = 0
    for tensor in tensors:
        sound = tensor.begin == at <= tensor.end and min(tensor.shape, default=0) >= 0
        if not sound or prod(tensor.shape) > MOST_PER_BYTE * tensor.num_bytes or len(tensor.name) > LONGEST_NAME:
            raise InputError(f"{path} has a damaged header at tensor {tensor.name[:LONGEST_NAME]}; fetch it again")
        at = tensor.end
    return tuple(tensors)


def make_header(tensors: Iterable[tuple[str, str, tuple[int, ...], int]], metadata: dict[str, str]) -> bytes:
    """The header of tensors (name, dtype, shape, bytes) that follow one another, filled up so that data is aligned."""
    document: dict[str, Any] = {"__metadata__": metadata}
    at = 0
    for name, dtype, shape, num_bytes in tensors:
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + num_bytes]}
        at += num_bytes
    header = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    return header + b" " * (-len(header) % ALIGN)


def write_header(file: BinaryIO, header: bytes) -> None:
    file.write(len(header).to_bytes(LENGTH_BYTES, "little"))
    file.write(header)
