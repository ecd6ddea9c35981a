"""NumPy's .npy and .npz, never unpickled and never larger in memory than what is in the file lets expect.

A header or a zip may promise any size: an array is read only where its bytes are there, row by row or whole.
"""

from __future__ import annotations

import lzma
import math
import struct
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
LARGEST_BYTES = 1 << 26  # most bytes read at once, by rows; a smaller member of a zip may be packed to any size
MOST_PACKED = 200  # a larger member may have at most this many times its packed size
MOST_AXES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayStream:
    """An array whose header was read; its rows follow in `file`."""

    file: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    columns_first: bool

    @property
    def num_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)

    def chunks(self, rows: int) -> Iterator[npt.NDArray[Any]]:
        """The array in pieces of `rows` rows. Raises ValueError if it is truncated, of no bytes, or by columns."""
        if self.columns_first:
            raise ValueError("it stores columns first; save np.ascontiguousarray(array)")
        inner = self.shape[1:]
        size = self.dtype.itemsize * math.prod(inner)
        if self.shape[0] and not 0 < size <= LARGEST_BYTES:
            raise ValueError(f"its header says shape {_shown(self.shape)} of {self.dtype}, which cannot be")
        rows = max(min(rows, LARGEST_BYTES // max(size, 1)), 1)
        for start in range(0, self.shape[0], rows):
            count = min(rows, self.shape[0] - start)
            data = self.file.read(count * size)
            if len(data) < count * size:
                raise ValueError(f"truncated: row {start + len(data) // size} of {self.shape[0]} is not there")
            yield _values(data, self.dtype).reshape(count, *inner)

    def whole(self, bytes_there: int) -> npt.NDArray[Any]:
        """All of it, from a file of `bytes_there` bytes. Raises ValueError where they are too few."""
        size = self.num_bytes
        data = self.file.read(size) if size <= bytes_there else b""
        if len(data) < size:
            raise ValueError(f"truncated: its header says shape {_shown(self.shape)} of {self.dtype}, {size} bytes")
        if not size:
            if max(self.shape, default=0) > bytes_there:
                raise ValueError(f"its header says shape {_shown(self.shape)} of {self.dtype}, which cannot be")
            return np.empty(self.shape, dtype=self.dtype)
        array = _values(data, self.dtype)
        return array.reshape(self.shape[::-1]).T if self.columns_first else array.reshape(self.shape)


def open_array(file: IO[bytes]) -> ArrayStream:
    """Read the header. Raises ValueError on what is no .npy, or holds objects."""
    try:
        version = npy.read_magic(file)
    except ValueError:
        raise ValueError("it is empty or no .npy: it does not begin as one (magic string)") from None
    if version not in HEADERS:
        raise ValueError(f"it is of .npy version {version}")
    try:
        shape, fortran, dtype = HEADERS[version](file)
    except (TokenError, SyntaxError, TypeError, UnicodeDecodeError, RecursionError, MemoryError):
        raise ValueError("its header is damaged") from None
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    if len(shape) > MOST_AXES or not all(type(size) is int and 0 <= size < 2**63 for size in shape):
        raise ValueError(f"its header says shape {_shown(shape)}, which cannot be")
    return ArrayStream(file=file, shape=shape, dtype=dtype, columns_first=fortran and len(shape) > 1)


@contextmanager
def open_zip(file: Any) -> Iterator[zipfile.ZipFile]:
    """A zip of arrays. Raises ValueError for all that may be wrong with it, then and while it is read."""
    try:
        with zipfile.ZipFile(file) as archive:
            for member in archive.infolist():
                if member.file_size > LARGEST_BYTES and member.file_size > MOST_PACKED * member.compress_size:
                    raise ValueError(
                        f"{member.filename} unpacks from {member.compress_size} bytes to {member.file_size}, more than "
                        f"{MOST_PACKED} times as many; save it without compression"
                    )
            yield archive
    except (
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
        struct.error,
        EOFError,
        KeyError,
        NotImplementedError,  # the way of packing is unknown
        RuntimeError,  # encrypted
    ) as error:
        raise ValueError(f"it is no sound zip of arrays: {error or type(error).__name__}") from None


def read_arrays(file: IO[bytes], *names: str) -> dict[str, npt.NDArray[Any]]:
    """The arrays of a .npz by name, without names all, else those only and the others empty; a .npy is named "".

    Raises ValueError, and OSError where the file cannot be read.
    """
    head = file.read(2)
    size = file.seek(0, 2)
    file.seek(0)
    if head != b"PK":
        return {"": open_array(file).whole(size)}
    found: dict[str, npt.NDArray[Any]] = {}
    with open_zip(file) as archive:
        for member in archive.infolist():
            name = member.filename.removesuffix(".npy")
            if names and name not in names:
                found[name] = np.empty(0)
                continue
            with archive.open(member) as content:
                found[name] = open_array(content).whole(member.file_size)
    return found


def _values(data: bytes, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    array = np.frombuffer(data, dtype=dtype)
    if dtype.kind == "U" and array.view(f"{dtype.byteorder}u4").max(initial=0) > sys.maxunicode:
        raise ValueError("it holds text with characters that do not exist")
    return array


def _shown(shape: tuple[int, ...]) -> str:
    return f"{list(shape)}"[:80]
