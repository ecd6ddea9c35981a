"""Locks that processes share, by files: one is free as soon as its process ends, however that ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def file_lock(path: Path | None, *, wait: bool = True) -> Iterator[bool]:
    """Whether the lock is held within the block: False if another holds it, and nobody was to wait.

    Where there can be no lock (no path, a folder that cannot be written, a file system without locks, Windows) it is
    held by whoever asks: for work that may be done twice. The file stays.
    """
    if path is None or sys.platform == "win32":
        yield True
        return
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError:
        yield True
        return
    with file:
        held = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            held = False
        except OSError:
            pass
        yield held
