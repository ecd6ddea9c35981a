"""Reading shards into buffers, as much as is asked for: maps of the files would count as memory of this process."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.traces.stored_path import StoredFile, StoredPath

if TYPE_CHECKING:
    from placement.traces.format import Shard

_DTYPES = {"request": np.int32, "position": np.int32, "phase": np.uint8}


class ShardReader:
    """An open shard."""

    def __init__(self, shard: Shard) -> None:
        self._shard = shard
        try:
            self._file = _opened(shard.path)
        except OSError as error:
            raise TraceError(f"cannot read {shard.path}: {error.strerror}") from None

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
        shard = self._shard
        if out is None:
            dtype = shard.id_dtype if name == "expert_ids" else np.dtype(np.float16)
            out = np.empty((stop - start, shard.top_k), dtype=dtype)
        self._read(name, (layer * shard.num_tokens + start) * shard.top_k, out)
        return out

    def _read(self, name: str, first: int, out: npt.NDArray[Any]) -> None:
        """Fill `out` with the tensor's values from number `first` on."""
        left = out.reshape(-1).view(np.uint8).data
        try:
            self._file.seek(self._shard.begins[name] + first * out.itemsize)
            while left:
                size = self._file.readinto(left)
                if not size:
                    raise TraceError(f"{self._shard.path} is truncated; write the shard again")
                left = left[size:]
        except OSError as error:
            raise TraceError(f"cannot read {self._shard.path}: {error.strerror}") from None


def _opened(path: Path | StoredPath) -> FileIO | StoredFile:
    if isinstance(path, StoredPath):
        return path.open()
    file = path.open("rb", buffering=0)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return file
