"""Files and folders of traces: their names, their size, whether they changed, and that they are on disk."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from placement.support.atomic_files import sync_folder
from placement_api.store.files import Entry
from placement_api.store.s3 import Place


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def digest_of_names(path: Path) -> str:
    """Of names, sizes and times: enough to see that a registered trace was changed, without reading it."""
    files = [path] if path.is_file() else sorted(path.rglob("trace.json")) + sorted(path.rglob("shard-*.safetensors"))
    lines = [f"{one}\n{one.stat().st_size}\n{one.stat().st_mtime_ns}" for one in files]
    return hashlib.sha256("\n".join([str(path), *lines]).encode(errors="surrogateescape")).hexdigest()[:32]


def plain_name(file_name: str) -> str:
    """A name for a file that a stranger named: its end, without what a path could mean."""
    name = re.sub(r"[^A-Za-z0-9._=-]", "_", file_name.rpartition("/")[2])[-100:].lstrip(".")
    return name or "trace"


def name_below(place: Place, entry: Entry) -> str:
    """The path of an object below the place; "" of the object that the place itself names."""
    return entry.key[len(place.key) :].lstrip("/")


def sync_all(folder: Path) -> None:
    """Wait until the files below a folder are on disk, all of them after they were written: one wait for most."""
    for path in (folder, *folder.rglob("*")):
        if path.is_dir():
            sync_folder(path)
        else:
            with path.open("rb") as file:
                os.fsync(file.fileno())
