"""Shared storage: what reading a trace needs of `pathlib.Path`, on a URL such as s3://bucket/folder, by fsspec.

Which storage there is, where it is and who we are there is found as its own tools find it (for S3: AWS_ENDPOINT_URL,
AWS_ACCESS_KEY_ID, AWS_PROFILE, ...). Everything is read from there in pieces; nothing is copied to disk.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from placement.errors import TraceError

PIECE_BYTES, MOST_PIECES = 1 << 20, 128  # an open file reads pieces of this size, and keeps this many
_URL = re.compile(r"[a-z][a-z0-9+.-]*://.")


def is_url(path: object) -> bool:
    return isinstance(path, StoredPath) or _URL.match(str(path)) is not None


@dataclass(frozen=True, slots=True, order=True)
class StoredPath:
    """A file or folder at a URL. What fails raises OSError, TraceError where a package for the storage is missing."""

    url: str

    def __str__(self) -> str:
        return self.url

    def __truediv__(self, name: str) -> StoredPath:
        return StoredPath(f"{self.url.rstrip('/')}/{name}")

    @property
    def name(self) -> str:
        return self.url.rstrip("/").rpartition("/")[2]

    @property
    def parent(self) -> StoredPath:
        return StoredPath(self.url.rstrip("/").rpartition("/")[0])

    def resolve(self) -> StoredPath:
        return StoredPath(self.url.rstrip("/"))

    def exists(self) -> bool:
        with _errors(self):
            return bool(_storage(self).exists(self.url))

    def is_file(self) -> bool:
        with _errors(self):
            return bool(_storage(self).isfile(self.url))

    def glob(self, pattern: str) -> list[StoredPath]:
        """Files whose names below this folder match; "" as pattern: what matches the URL itself."""
        storage = _storage(self)
        with _errors(self):
            found = storage.glob(str(self / pattern) if pattern else self.url)
            return [StoredPath(storage.unstrip_protocol(name)) for name in found]

    def read_bytes(self) -> bytes:
        with _errors(self):
            return bytes(_storage(self).cat_file(self.url))

    def read_range(self, start: int, stop: int) -> bytes:
        """Bytes `start:stop`; fewer where the file ends."""
        with _errors(self):
            return bytes(_storage(self).cat_file(self.url, start=start, end=stop))

    def size(self) -> int:
        with _errors(self):
            return int(_storage(self).size(self.url))

    def version(self) -> tuple[int, ...]:
        """What changes whenever the content does: size and, of S3, the ETag."""
        with _errors(self):
            return (int(_storage(self).size(self.url)), int(_storage(self).checksum(self.url)))

    def open(self) -> StoredFile:
        with _errors(self):
            cache = {"cache_type": "blockcache", "cache_options": {"maxblocks": MOST_PIECES}}
            return StoredFile(self, _storage(self).open(self.url, "rb", block_size=PIECE_BYTES, **cache))


class StoredFile:
    """An open file, of which pieces are fetched as they are read."""

    def __init__(self, path: StoredPath, file: Any) -> None:
        self._path, self._file = path, file

    def seek(self, start: int) -> None:
        self._file.seek(start)

    def readinto(self, out: memoryview) -> int:
        with _errors(self._path):
            return int(self._file.readinto(out))

    def close(self) -> None:
        self._file.close()


def _storage(path: StoredPath) -> Any:
    """The file system of fsspec, one for each kind and process."""
    try:
        import fsspec
    except ImportError:
        raise TraceError(f"{path} is on shared storage; pip install 'expert-placement[s3]' to read it") from None
    try:
        return fsspec.core.url_to_fs(path.url)[0]
    except (ImportError, ValueError) as error:
        raise TraceError(f"{path}: {error}; for s3:// pip install 'expert-placement[s3]'") from None


@contextmanager
def _errors(path: StoredPath) -> Iterator[None]:
    """Every kind of storage has errors of its own: all of them become OSError."""
    try:
        yield
    except FileNotFoundError:
        raise FileNotFoundError(errno.ENOENT, "no such file", path.url) from None
    except Exception as error:
        told = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise OSError(errno.EIO, told, path.url) from None
