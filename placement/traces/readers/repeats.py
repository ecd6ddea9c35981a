"""The same tokens recorded by several ranks (tensor parallelism) count once."""

from __future__ import annotations

import hashlib
from typing import IO, Any

from placement.traces.readers.torch_file import StoredTensor

CHUNK = 1 << 20


class Repeats:
    """Remembers passes by their ids; without a second file nothing can repeat, and nothing is read."""

    def __init__(self, num_files: int) -> None:
        self._wanted = num_files > 1
        self._seen: set[bytes] = set()

    def seen(self, key: Any, file: IO[bytes], ids: StoredTensor) -> bool:
        """True if a pass of this key with these ids came before."""
        if not self._wanted:
            return False
        digest = hashlib.blake2b(repr((key, ids.shape)).encode(), digest_size=16)
        total = 1
        for size in ids.shape:
            total *= size
        for start in range(0, total, CHUNK):
            digest.update(ids.part(file, start, min(CHUNK, total - start)))
        found = digest.digest()
        if found in self._seen:
            return True
        self._seen.add(found)
        return False
