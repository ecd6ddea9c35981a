"""The safetensors files of a checkpoint, read in pieces."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from placement.errors import InputError
from placement.support.tensor_file import Header, Tensor, read_header

CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class SafetensorsFile:
    path: Path
    header: Header

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """In the order of their bytes."""
        return self.header.tensors

    def chunks(self, begin: int, end: int) -> Iterator[bytes]:
        """Bytes `begin` to `end` of the data, a few megabytes at a time. Raises InputError."""
        start = self.header.data_begin
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
        with path.open("rb", buffering=0) as file:
            number = file.fileno()
            header = read_header(lambda start, stop: os.pread(number, stop - start, start), os.fstat(number).st_size)
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path} {error}; fetch it again (a pointer of git-lfs is not enough)") from None
    return SafetensorsFile(path=path, header=header)
