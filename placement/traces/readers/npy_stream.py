"""NumPy arrays read row by row from a file or from a member of a zip; nothing is unpickled."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from tokenize import TokenError
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy

HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
LARGEST_BYTES = 1 << 26  # read at once


@dataclass(frozen=True, slots=True, kw_only=True)
class ArrayStream:
    """An array whose header was read; its rows follow in `file`."""

    file: IO[bytes]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def chunks(self, rows: int) -> Iterator[npt.NDArray[Any]]:
        """The array in pieces of `rows` rows. Raises ValueError on a truncated file."""
        inner = self.shape[1:]
        size = self.dtype.itemsize * math.prod(inner)
        rows = max(min(rows, LARGEST_BYTES // max(size, 1)), 1)
        if size > LARGEST_BYTES or min(self.shape, default=0) < 0:
            raise ValueError(f"its header says shape {list(self.shape)}, which cannot be")
        for start in range(0, self.shape[0], rows):
            count = min(rows, self.shape[0] - start)
            data = self.file.read(count * size)
            if len(data) < count * size:
                raise ValueError(f"truncated: row {start + len(data) // max(size, 1)} of {self.shape[0]} is not there")
            yield np.frombuffer(data, dtype=self.dtype).reshape(count, *inner)


def open_array(file: IO[bytes]) -> ArrayStream:
    """Read the header. Raises ValueError on what is no .npy, holds objects, or stores columns first."""
    version = npy.read_magic(file)
    if version not in HEADERS:
        raise ValueError(f"it is of .npy version {version}")
    try:
        shape, fortran, dtype = HEADERS[version](file)
    except (TokenError, SyntaxError, TypeError, UnicodeDecodeError):
        raise ValueError("its header is damaged") from None
    if dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    if fortran and len(shape) > 1:
        raise ValueError("it stores columns first; save np.ascontiguousarray(array)")
    return ArrayStream(file=file, shape=shape, dtype=dtype)
