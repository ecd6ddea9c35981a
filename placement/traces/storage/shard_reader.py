"""Reading shards into buffers, as much as is asked for: maps of the files would count as memory of this process."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.traces.storage.stored_path import StoredFile, StoredPath

_DTYPES = {"request": np.int32, "position": np.int32, "phase": np.uint8, "token": np.int32}


class ShardReader:
    """An open shard: the file at `path`, whose tensors begin at the bytes `begins`."""

    def __init__(
        self,
        path: Path | StoredPath,
        begins: dict[str, int],
        *,
        num_tokens: int,
        top_k: int,
        id_dtype: np.dtype[Any],
    ) -> None:
        self._path, self._begins = path, begins
        self._num_tokens, self._top_k, self._id_dtype = num_tokens, top_k, id_dtype
        try:
            self._file = _opened(path)
        except OSError as error:
            raise TraceError(f"cannot read {path}: {error.strerror}") from None

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def column(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """As `Shard.column`."""
        out = np.empty(stop - start, dtype=_DTYPES[name])
        self._read(name, start, out)
        return out

    def layer(
        self, name: str, layer: int, start: int, stop: int, out: npt.NDArray[Any] | None = None
    ) -> npt.NDArray[Any]:
        """As `Shard.layer`; into `out` if it is given, which must have that shape and type and be contiguous."""
        if out is None:
            dtype = self._id_dtype if name == "expert_ids" else np.dtype(np.float16)
            out = np.empty((stop - start, self._top_k), dtype=dtype)
        self._read(name, (layer * self._num_tokens + start) * self._top_k, out)
        return out

    def _read(self, name: str, first: int, out: npt.NDArray[Any]) -> None:
        """Fill `out` with the tensor's values from number `first` on."""
        left = out.reshape(-1).view(np.uint8).data
        try:
            self._file.seek(self._begins[name] + first * out.itemsize)
            while left:
                size = self._file.readinto(left)
                if not size:
                    raise TraceError(f"{self._path} is truncated; write the shard again")
                left = left[size:]
        except OSError as error:
            raise TraceError(f"cannot read {self._path}: {error.strerror}") from None


def _opened(path: Path | StoredPath) -> FileIO | StoredFile:
    if isinstance(path, StoredPath):
        return path.open()
    file = path.open("rb", buffering=0)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return file
