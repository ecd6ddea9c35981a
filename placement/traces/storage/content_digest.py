"""The name of a trace by its content: the same trace always has the same, wherever it lies."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from placement.errors import TraceError


def content_digest(files: Iterable[tuple[str, Path]]) -> str:
    """The digest of files: 32 hexadecimal digits.

    Args:
        files: The path of each within the trace, with `/`, and where it lies.

    Raises:
        TraceError: One of them cannot be read.
    """
    total = hashlib.sha256()
    for name, path in sorted((PurePosixPath(name), path) for name, path in files):
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise TraceError(f"cannot read {path}: {error.strerror}; give files that can be read") from None
        total.update(f"{name}\n{digest}\n".encode())
    return total.hexdigest()[:32]
