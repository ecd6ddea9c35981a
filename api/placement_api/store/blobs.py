"""Results: files named by the SHA-256 of their content, so that the same result is kept once."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from placement.errors import InputError
from placement_api.store.files import Entry, Files

FOLDER = "blobs/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blobs:
    files: Files

    def put(self, content: bytes) -> str:
        """The digest of the content, which is then kept. Raises OutputError, Problem."""
        digest = hashlib.sha256(content).hexdigest()
        self.files.write(_key(digest), content)
        return digest

    def get(self, digest: str) -> bytes:
        """Raises InputError, Problem."""
        try:
            return self.path(digest).read_bytes()
        except OSError as error:
            raise InputError(f"the result {digest[:12]} cannot be read: {error.strerror}; restore it") from None

    def path(self, digest: str) -> Path:
        """A file of this machine with the content. Raises InputError, Problem."""
        return self.files.local(_key(digest))

    def delete(self, digest: str) -> None:
        self.files.remove(_key(digest))

    def list(self) -> dict[str, Entry]:
        """What there is, by digest."""
        return {entry.key.rpartition("/")[2]: entry for entry in self.files.list(FOLDER)}


def _key(digest: str) -> str:
    return f"{FOLDER}{digest[:2]}/{digest}"
