"""The same tokens recorded by several ranks (tensor parallelism) count once."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy.typing as npt


class Repeats:
    """Remembers what was recorded, by digests; of a single file nothing can repeat, and nothing is read."""

    def __init__(self, num_files: int) -> None:
        self.copies = 0
        self._wanted = num_files > 1
        self._seen: set[bytes] = set()

    def seen(self, key: Any, parts: Iterable[npt.NDArray[Any]]) -> bool:
        """True if the same arrays, C-contiguous, came before with the same key."""
        if not self._wanted:
            return False
        digest = hashlib.blake2b(repr(key).encode(), digest_size=16)
        for part in parts:
            digest.update(part.data)
        found = digest.digest()
        if found in self._seen:
            self.copies += 1
            return True
        self._seen.add(found)
        return False
