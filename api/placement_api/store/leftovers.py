"""What a process that was killed had begun to write."""

from __future__ import annotations

import shutil
from pathlib import Path

BEGUN = ("uploads/*", "traces/.incoming-*", "blobs/*/.*.part")


def drop_leftovers(data: Path, before: float) -> None:
    """Remove files and folders that were begun in the data folder and of which nothing was written since `before`."""
    for pattern in BEGUN:
        for path in data.glob(pattern):
            if _youngest(path) >= before:
                continue
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _youngest(path: Path) -> float:
    """Seconds since 1970; what vanished meanwhile is old."""
    times = [0.0]
    for one in (path, *path.rglob("*")):
        try:
            times.append(one.stat().st_mtime)
        except FileNotFoundError:
            continue
    return max(times)
