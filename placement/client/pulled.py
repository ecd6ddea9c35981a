"""A folder of pulled versions: each in a folder of its own, and `current`, a link that is swapped when all is there.

DIR/current -> v3-1f0c9a7e55d2          what engines are started with
DIR/v3-1f0c9a7e55d2/placement.json      the placement file
DIR/v3-1f0c9a7e55d2/expert_map.json     what the engine loads; the ending is the engine's
DIR/v3-1f0c9a7e55d2/flags.txt           how to start the engine
DIR/v3-1f0c9a7e55d2/grouping.json       homes, if the placement was solved with some
DIR/v3-1f0c9a7e55d2/pulled.json         which version this is, and the digest of every file
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field

from placement.documents.document import Document, json_bytes
from placement.errors import InputError, OutputError
from placement.support.atomic_files import make_folder, sync_folder, write_atomic

CURRENT, PULLED, PLACEMENT, GROUPING, FLAGS, MAP = (
    "current",
    "pulled.json",
    "placement.json",
    "grouping.json",
    "flags.txt",
    "expert_map",
)
PART, KEPT = ".pull-", 2  # versions that stay in the folder: the one in use, and the one before


class PulledFile(Document):
    """Which version a folder holds."""

    SCHEMA = "expert-pulled/1"
    MEND = "remove the folder and pull again"

    schema_: Literal["expert-pulled/1"] = Field(alias="schema")
    name: str
    asked: str = Field(description="Alias, or number of the version, that was asked for")
    version: int
    sha256: str = Field(description="Of the placement file, as the service names it")
    engine: str
    options: dict[str, int | str | None] = Field(description="What the engine's file was made with besides")
    files: dict[str, str] = Field(description="Name of each file -> SHA-256 of its content")


def current(folder: Path) -> PulledFile | None:
    """What `current` holds, if that is whole: every file there, and as it was written."""
    try:
        told = PulledFile.read(folder / CURRENT / PULLED)
        whole = all(sha256(folder / CURRENT / name) == digest for name, digest in told.files.items())
    except (InputError, OSError):
        return None
    return told if whole else None


def replace(folder: Path, told: PulledFile, files: Mapping[str, bytes]) -> None:
    """Make these files `current`. Raises OutputError; then `current` is what it was.

    `told.files` is filled in here.
    """
    make_folder(folder)
    where = folder / f"v{told.version}-{told.sha256[:12]}-{told.engine}"
    part = None
    try:
        part = Path(tempfile.mkdtemp(prefix=PART, dir=folder))
        for name, content in files.items():
            write_atomic(part / name, content)
        listed = told.model_copy(update={"files": {name: sha256(part / name) for name in files}})
        write_atomic(part / PULLED, json_bytes(listed.document()))
        part.chmod(0o755)  # others start the engine
        shutil.rmtree(where, ignore_errors=True)
        part.rename(where)
        _link(folder, where.name)
        _drop_old(folder, where.name)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror}; free space there, or give a writable folder"
        ) from None
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def sha256(path: Path) -> str:
    """Raises OSError."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _link(folder: Path, target: str) -> None:
    """Point `current` at a folder beside it, in one step."""
    link = Path(tempfile.mktemp(prefix=PART, dir=folder))
    link.symlink_to(target)
    try:
        link.replace(folder / CURRENT)
    finally:
        link.unlink(missing_ok=True)
    sync_folder(folder)


def _drop_old(folder: Path, used: str) -> None:
    """Remove versions that were pulled before, but the latest of them, and what a pull that was killed had begun."""
    for begun in folder.glob(f"{PART}*"):
        if begun.is_symlink():
            begun.unlink(missing_ok=True)
        else:
            shutil.rmtree(begun, ignore_errors=True)
    versions = [path for path in folder.glob("v*-*") if path.is_dir() and path.name != used]
    for old in sorted(versions, key=lambda path: path.stat().st_mtime)[: -(KEPT - 1)]:
        shutil.rmtree(old, ignore_errors=True)
