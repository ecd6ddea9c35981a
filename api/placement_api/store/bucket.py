"""Files in a bucket that several hosts share, each with a cache of what it reads."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from placement.errors import InputError
from placement.support.atomic_files import make_folder
from placement_api.store.files import Entry
from placement_api.store.s3 import Buckets, Place

YOUNG_S = 60.0  # what was asked for just now may be about to be opened
PART, PART_S = ".part-", 86_400.0  # what is fetched just now; what a process that died had begun


@dataclass(slots=True, kw_only=True)
class BucketFiles:
    """See `Files`.

    cache       folder of this host
    most_bytes  that the cache takes; one file or trace is kept even if it is larger
    pinned      keys that jobs read now
    """

    place: Place
    buckets: Buckets
    cache: Path
    most_bytes: int
    pinned: Callable[[], set[str]] = set
    _trimming: threading.Lock = field(default_factory=threading.Lock)

    def write(self, key: str, content: bytes) -> None:
        self.buckets.write(self.place.below(key), content)

    def take(self, key: str, folder: Path) -> None:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            self.buckets.upload(self.place.below(f"{key}/{file.relative_to(folder)}"), file)

    def local(self, key: str) -> Path:
        entry = self.cache / key.replace("/", "~")
        path = entry / key.rpartition("/")[2]
        try:
            os.utime(entry)
        except FileNotFoundError:
            self._fetch(key, entry)
        return path

    def remove(self, key: str) -> None:
        self.buckets.remove(self.place.below(key))
        for entry in self.cache.glob(f"{key.replace('/', '~')}*"):
            shutil.rmtree(entry, ignore_errors=True)

    def list(self, prefix: str) -> Iterator[Entry]:
        for entry in self.buckets.list(self.place.below(prefix.rstrip("/"))):
            key = entry.key[len(self.place.key) :].lstrip("/")
            yield Entry(key=key, num_bytes=entry.num_bytes, modified=entry.modified)

    def _fetch(self, key: str, entry: Path) -> None:
        whole = self.place.below(key)
        found = list(self.buckets.list(whole))
        if not found:
            raise InputError(f"{key[:60]} is not in the bucket any more; restore it, or make it again")
        make_folder(self.cache)
        self._trim(self.most_bytes - sum(one.num_bytes for one in found))
        part = Path(tempfile.mkdtemp(prefix=PART, dir=self.cache))
        try:
            for one in found:
                target = part / key.rpartition("/")[2] / one.key[len(whole.key) :].lstrip("/")
                self.buckets.download(Place(bucket=whole.bucket, key=one.key), target)
            part.rename(entry)
        except OSError:
            if not entry.is_dir():  # else another thread was faster
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _trim(self, most_bytes: int) -> None:
        """Remove what was asked for longest ago until no more is left, but nothing that is in use."""
        with self._trimming:
            pinned = {key.replace("/", "~") for key in self.pinned()}
            now, entries = time.time(), []
            for entry in self.cache.iterdir():
                age = now - entry.stat().st_mtime
                size = sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
                entries.append((age, size, entry))
            total = sum(size for _, size, _ in entries)
            for age, size, entry in sorted(entries, reverse=True):
                if total <= most_bytes:
                    return
                used = any(entry.name == key or entry.name.startswith(f"{key}~") for key in pinned)
                if not used and age > (PART_S if entry.name.startswith(PART) else YOUNG_S):
                    shutil.rmtree(entry, ignore_errors=True)
                    total -= size
