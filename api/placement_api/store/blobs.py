"""Files named by the SHA-256 of their content: written once, whole, and on disk before anyone is told of them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from placement.errors import InputError
from placement.files import make_folder, sync_folder, write_atomic


class Blobs:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_folder(folder)

    def put(self, content: bytes) -> str:
        """The digest of the content, which then survives a power cut. Raises OutputError."""
        digest = hashlib.sha256(content).hexdigest()
        path = self.path(digest)
        try:
            os.utime(path)  # so that it is not taken for a file that nobody needs
        except FileNotFoundError:
            make_folder(path.parent)
            sync_folder(self.folder)
            write_atomic(path, content)
        return digest

    def get(self, digest: str) -> bytes:
        try:
            return self.path(digest).read_bytes()
        except OSError as error:
            raise InputError(f"the result {digest[:12]} cannot be read: {error.strerror}; restore it") from None

    def path(self, digest: str) -> Path:
        return self.folder / digest[:2] / digest

    def delete(self, digest: str) -> None:
        self.path(digest).unlink(missing_ok=True)

    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.folder.glob("*/*") if path.is_file())

    def drop(self, named: set[str], before: float) -> None:
        """Delete the files that are not named and were written before that time."""
        for path in self.folder.glob("*/*"):
            if path.name not in named and path.stat().st_mtime < before:
                path.unlink(missing_ok=True)
