"""Where files are kept: the interface, and a folder of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from placement.support.atomic_files import make_folder, sync_folder, write_atomic


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file that is kept; `modified` is seconds since 1970."""

    key: str
    num_bytes: int
    modified: float


class Files(Protocol):
    """Files by key, `blobs/0f/0f3c...`: written once, whole, and safe from a power cut before anyone is told of them.

    Every method may raise Problem (503) where the files are on another machine that does not answer.
    """

    def write(self, key: str, content: bytes) -> None:
        """Keep a file, or see that it is kept and call it young. Raises OutputError."""

    def take(self, key: str, folder: Path) -> None:
        """Keep the files of `folder`, which is used up, below `key`. Raises OutputError, OSError."""

    def local(self, key: str) -> Path:
        """The file, or the folder of the files below `key`, on a disk of this machine. Raises InputError."""

    def remove(self, key: str) -> None:
        """Keep the file, or those below `key`, no longer; nothing happens where there is none."""

    def list(self, prefix: str) -> Iterator[Entry]:
        """The files whose keys start with `prefix`, a folder."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFiles:
    root: Path

    def write(self, key: str, content: bytes) -> None:
        path = self.root / key
        try:
            os.utime(path)
        except FileNotFoundError:
            make_folder(path.parent)
            sync_folder(path.parent.parent)
            write_atomic(path, content)

    def take(self, key: str, folder: Path) -> None:
        target = self.root / key
        make_folder(target.parent)
        try:
            folder.rename(target)
        except OSError:  # it is there already
            if not target.is_dir():
                raise
            os.utime(target)
        sync_folder(target.parent)

    def local(self, key: str) -> Path:
        return self.root / key

    def remove(self, key: str) -> None:
        path = self.root / key
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)

    def list(self, prefix: str) -> Iterator[Entry]:
        for path in (self.root / prefix).rglob("*"):
            try:
                stat = path.stat()
            except FileNotFoundError:  # removed meanwhile
                continue
            if path.is_file():
                yield Entry(key=str(path.relative_to(self.root)), num_bytes=stat.st_size, modified=stat.st_mtime)
