"""Writing files so that a reader never sees half of one."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from placement.errors import OutputError

PART = ".part"
LONGEST_NAME = 200  # bytes; systems allow 255, and temporary names add some


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
        raise OutputError(f"cannot write {path}: {error.strerror}; {_mending(error)}") from None
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Write `data` beside `path`, fsync, rename over it. Raises OutputError; then `path` is as it was before."""
    write_together({Path(path): data})


def write_together(contents: Mapping[Path, bytes | str]) -> None:
    """Write several files that belong together: a full disk leaves all of them as they were before.

    Args:
        contents: What to write, by path.

    Raises:
        OutputError: One of the files cannot be written.
    """
    with ExitStack() as stack:
        for path, data in contents.items():
            file = stack.enter_context(open_atomic(path))
            file.write(data.encode(errors="replace") if isinstance(data, str) else data)
            file.flush()


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
    """Refuse the path of a file now if it could not be written later: asked before long work, not after it.

    Raises:
        OutputError: The path is a folder or a device, its folder is absent or not writable, or its name is too long.
    """
    path = Path(path)
    try:
        if path.is_dir():
            raise OutputError(f"cannot write {path}: it is a folder; give a file name")
        if path.exists() and not path.is_file():
            raise OutputError(f"cannot write {path}: it is a device or pipe, which would be replaced; give a file name")
        _check_name(path)
        _probe(path.parent)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; {_mending(error)}") from None


def check_folder(path: str | Path) -> None:
    """Refuse a folder now if `make_folder` would fail later, or no file could be written to the folder.

    Raises:
        OutputError: A file is in the way, or the folder (the lowest one that is there) is not writable.
    """
    path = Path(path)
    try:
        there = next((folder for folder in (path, *path.absolute().parents) if folder.exists()), path)
        if not there.is_dir():
            raise OutputError(f"cannot write to {path}: {there} is a file; give a folder")
        _check_name(path)
        _probe(there)
    except OSError as error:
        raise OutputError(f"cannot write to {path}: {error.strerror}; give a writable folder") from None


def check_new_folder(path: str | Path) -> None:
    """Refuse a folder now if it could not be made later, or if something would be overwritten.

    Raises:
        OutputError: Something but an empty folder is there, or the folder above is absent or not writable.
    """
    path = Path(path)
    check_free(path)
    try:
        _check_name(path)
        _probe(path.absolute().parent)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror}; give a new folder in an existing, writable folder"
        ) from None


def check_free(path: str | Path) -> None:
    """Raise OutputError if something but an empty folder is at `path`."""
    path = Path(path)
    try:
        taken = path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir())))
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror}; give a new folder in a writable folder") from None
    if taken:
        raise OutputError(
            f"{path} exists and is not an empty folder; nothing is overwritten: remove it or name another"
        )


def _mending(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space, or give a path on another disk"
    return "give a path in an existing, writable folder"


def _check_name(path: Path) -> None:
    if len(os.fsencode(path.name)) > LONGEST_NAME:
        raise OutputError(f"cannot write {path}: its name is longer than {LONGEST_NAME} bytes; give a shorter one")


def _probe(folder: Path) -> None:
    """Raise OSError if no file can be made in the folder. The file that is tried has no name, or loses it at once."""
    with tempfile.TemporaryFile(dir=folder):
        pass


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
