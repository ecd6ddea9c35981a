"""Rows and files of a data folder in one tar, and back again.

The queue is not in it: jobs that were open when the rows were copied are put into a new one when a service starts.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import sqlite3
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from placement.errors import InputError, OutputError, printable
from placement.support.atomic_files import check_free, make_folder, open_atomic, sync_folder
from placement.traces.storage.content_digest import content_digest

ROWS = "store.sqlite"
BLOB = re.compile(r"blobs/[0-9a-f]{2}/([0-9a-f]{64})")
TRACE = re.compile(r"traces/([0-9a-f]{32})(?:/[A-Za-z0-9_][A-Za-z0-9._=-]*){1,6}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """How many results and traces a backup holds, and which files rows name that it does not."""

    num_results: int
    num_traces: int
    missing: tuple[str, ...]


def back_up(data: Path, target: Path) -> Kept:
    """Write a tar of the rows and of the files that they name; a service may run with the folder meanwhile.

    Raises:
        InputError: There is no store in the folder, or its rows cannot be read.
        OutputError: The tar cannot be written.
    """
    if not (data / ROWS).exists():
        raise InputError(f"there is no {ROWS} in {data}; give the --data of a service that keeps its rows there")
    with tempfile.TemporaryDirectory(prefix=".backup-", dir=target.absolute().parent) as folder:
        copy = Path(folder) / ROWS
        try:  # the rows first: files are written before rows name them
            with _rows(data / ROWS) as source, closing(sqlite3.connect(copy)) as copied:
                source.backup(copied)
            keys = _keys(copy)
        except sqlite3.Error as error:
            raise InputError(f"the rows in {data / ROWS} cannot be read: {error}; restore a backup") from None
        missing = []
        with open_atomic(target) as file, tarfile.open(fileobj=file, mode="w") as tar:
            tar.add(copy, ROWS)
            for key in keys:
                if (data / key).exists():
                    tar.add(data / key, key)
                else:
                    missing.append(key)
    return _kept(keys, missing)


def restore(archive: Path, data: Path) -> Kept:
    """Make a data folder of a backup: whole, or not at all.

    Raises:
        InputError: The file is no backup, or something in it is not as it was.
        OutputError: The folder has something in it, or cannot be written.
    """
    check_free(data)
    make_folder(data.absolute().parent)
    folder = Path(tempfile.mkdtemp(prefix=f".{data.name}-", dir=data.absolute().parent))
    try:
        _unpack(archive, folder)
        keys = _keys(folder / ROWS)
        missing = [key for key in keys if not (folder / key).exists()]
        for key in keys:
            if key not in missing:
                _check(folder, key)
        if data.exists():
            data.rmdir()
        folder.rename(data)
        sync_folder(data.absolute().parent)
    except (OSError, tarfile.TarError, sqlite3.Error) as error:
        if isinstance(error, OSError) and not isinstance(error, tarfile.TarError) and error.errno is not None:
            raise OutputError(f"cannot restore {archive} to {data}: {error.strerror}; free space there") from None
        reason = next(iter(str(error).splitlines()), type(error).__name__).rstrip(":")  # tarfile tells what it tried
        raise InputError(
            f"{archive} is no backup, or a broken one: {reason}; give what placement backup wrote"
        ) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return _kept(keys, missing)


def _unpack(archive: Path, folder: Path) -> None:
    with tarfile.open(archive) as tar:
        for member in tar:
            whole = member.isdir() or member.name == ROWS or BLOB.fullmatch(member.name) or TRACE.fullmatch(member.name)
            if not whole or not (member.isdir() or member.isreg()):
                raise tarfile.TarError(f"it holds {printable(member.name)[:100]}")
            tar.extract(member, folder, filter="data")
    if not (folder / ROWS).exists():
        raise tarfile.TarError(f"it holds no {ROWS}")


def _check(folder: Path, key: str) -> None:
    """Raise InputError unless what lies below a key has the digest that is its name."""
    path, name = folder / key, key.rpartition("/")[2]
    if path.is_file():
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    else:
        found = content_digest((str(one.relative_to(path)), one) for one in path.rglob("*") if one.is_file())
    if found != name:
        raise InputError(f"{key} is not as it was: its digest is {found}; give an earlier backup")


def _keys(rows: Path) -> list[str]:
    """What the rows name, in order: results and traces that are kept here. Raises sqlite3.Error."""
    with _rows(rows) as database:
        if (found := database.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found)
        files = [json.loads(one) for (one,) in database.execute("SELECT files FROM jobs")]
        traces = [name for (name,) in database.execute("SELECT id FROM traces WHERE source <> 'path'")]
        named = "SELECT digest FROM versions UNION SELECT grouping FROM versions WHERE grouping IS NOT NULL"
        known = database.execute("SELECT 1 FROM sqlite_master WHERE name = 'versions'").fetchone()
        published = [digest for (digest,) in database.execute(named)] if known else []  # else of an earlier version
    digests = sorted({digest for one in files for digest in one.values()}.union(published))
    return [f"blobs/{digest[:2]}/{digest}" for digest in digests] + [f"traces/{name}" for name in sorted(traces)]


def _kept(keys: list[str], missing: list[str]) -> Kept:
    there = [key for key in keys if key not in set(missing)]
    results = sum(key.startswith("blobs/") for key in there)
    return Kept(num_results=results, num_traces=len(there) - results, missing=tuple(missing))


@contextmanager
def _rows(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only reads."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        yield database
