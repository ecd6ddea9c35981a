"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from placement.errors import OutputError

PART = ".part"
LONGEST_NAME = 200  # bytes; systems allow 255, of which temporary names take some


@contextmanager
def open_atomic(path: str | Path) -> Iterator[BinaryIO]:
    """A file to write to, beside `path`; where the block ends it is synced and renamed over `path`.

    Raises OutputError for what the system refuses; after any error `path` is as it was before.
    """
    path = Path(path)
    temporary = None
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
        with os.fdopen(handle, "wb") as file:
            yield file
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; give a path in an existing, writable folder"
        ) from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write `data` beside `path`, fsync, rename over it. Raises OutputError; then `path` is as it was before."""
    payload = data.encode(errors="replace") if isinstance(data, str) else data
    with open_atomic(path) as file:
        file.write(payload)


def plain_name(name: object) -> str:
    """`name` if it is that of a file within a folder, not of one elsewhere. Raises ValueError."""
    if not isinstance(name, str) or Path(name).name != name or name in ("", "..") or "\0" in name:
        raise ValueError(f"{str(name)[:80]!r} is no name of a file in a folder")
    if len(name.encode()) > LONGEST_NAME:
        raise ValueError(f"{name[:80]!r} and so on is longer than the {LONGEST_NAME} bytes that a file name may have")
    return name


def remove_parts(folder: str | Path) -> None:
    """Remove what a killed process had begun to write to `folder`."""
    for left in Path(folder).glob(f".*{PART}"):
        left.unlink(missing_ok=True)


def check_writable(path: str | Path) -> None:
    """Raise OutputError now if `path` could not be written later: asked before long work, not after it."""
    path = Path(path)
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; give a file name")
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; give a path in an existing, writable folder"
        ) from None


def check_folder(path: str | Path) -> None:
    """Raise OutputError now if `make_folder` would fail later, or no file could be written to the folder."""
    path = Path(path)
    there = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), path)
    try:
        if not there.is_dir():
            raise OutputError(f"cannot write to {path}: {there} is a file; give a folder")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror}; give a writable folder") from None


def make_folder(path: str | Path) -> None:
    """Make the folder and those above it where they are absent. Raises OutputError."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"cannot make the folder {path}: {error.strerror}; give a writable folder") from None


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Wait until the names in the folder are on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
