"""Unpacking what strangers send: only files that readers know come out, below one folder, and no more than allowed."""

from __future__ import annotations

import gzip
import io
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from placement.errors import printable
from placement.traces.storage.litter import DATA, is_litter, left_out
from placement_api.problems import Problem
from placement_api.settings import Limits

SUFFIXES = DATA
WORD = r"[A-Za-z0-9_][A-Za-z0-9._=-]{0,149}"
NAME = re.compile(rf"(?:\./)?(?:{WORD}/){{0,3}}{WORD}(?:{'|'.join(map(re.escape, SUFFIXES))})")
CHUNK = 1 << 20
Member = tuple[str, int, IO[bytes] | None]  # name, bytes, and the content unless the file is left out
LARGEST_HEADER = 16 << 20  # of an archive's own tables, which its reader holds in memory
MEND = f"send a tar or zip of a trace's folder, or a file or archive of what an engine recorded: {', '.join(SUFFIXES)}"


def unpack(archive: Path, folder: Path, limits: Limits) -> list[str]:
    """Write the files in `archive` to `folder`, not yet on disk for sure, but those that hold no traffic (`is_litter`).

    Returns:
        A note on the files that were left out, if there were any. They count toward the limits as all others.

    Raises:
        Problem: The archive is broken, too large or holds what no reader knows (413, 422); then some files are left.
    """
    litter: list[str] = []
    try:
        members = _zip(archive, limits) if _is_zip(archive) else _tar(archive, limits)
        packed = archive.stat().st_size
        left = most = min(limits.unpacked_bytes, max(limits.unpack_free_bytes, limits.unpack_ratio * packed))
        for number, (name, size, content) in enumerate(members):
            if number >= limits.archive_members:
                raise _too_many(limits)
            if content is not None:
                left = _write(content, _target(folder, name), left, most)
                continue
            litter.append(name.removeprefix("./"))
            left -= size
            if left < 0:
                raise _too_large(most)
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
        gzip.BadGzipFile,
        EOFError,
        NotImplementedError,
        RuntimeError,
        ValueError,
        OverflowError,  # a size beyond 64 bits
        IndexError,
        struct.error,
    ) as error:
        raise Problem(422, f"the archive cannot be unpacked: {error or type(error).__name__}", MEND) from None
    return left_out(litter)


def _is_zip(archive: Path) -> bool:
    """By its start: a tar may end in a file that is a zip."""
    with archive.open("rb") as file:
        return file.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _target(folder: Path, name: str) -> Path:
    path = folder / name.removeprefix("./")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise Problem(422, f"the archive holds {printable(name)} below a file", "send folders of files") from None
    if path.exists():
        raise Problem(422, f"the archive holds {printable(name)} twice", "send each file once")
    return path


def _write(content: IO[bytes], path: Path, left: int, most: int) -> int:
    with path.open("xb") as file:
        while chunk := content.read(CHUNK):
            left -= len(chunk)
            if left < 0:
                raise _too_large(most)
            file.write(chunk)
    return left


def _tar(archive: Path, limits: Limits) -> Iterator[Member]:
    with archive.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        inner = gzip.GzipFile(fileobj=raw) if packed else raw
        with tarfile.TarFile(fileobj=cast(IO[bytes], _Bounded(cast(IO[bytes], inner)))) as tar:
            for number, member in enumerate(tar):
                tar.members = []  # type: ignore[attr-defined]  # it would keep all that it has seen
                if number > 2 * limits.archive_members:
                    raise _too_many(limits)
                if member.isdir():
                    _check_folder(member.name)
                    continue
                if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    raise Problem(422, f"the archive holds {member.name[:100]!r}, which is no plain file", MEND)
                if is_litter(member.name):
                    yield member.name, member.size, None
                    continue
                check_name(member.name)
                content = tar.extractfile(member)
                if content is not None:
                    yield member.name, member.size, content


def _zip(archive: Path, limits: Limits) -> Iterator[Member]:
    with archive.open("rb") as raw, zipfile.ZipFile(cast(IO[bytes], _Bounded(raw))) as file:
        for member in file.infolist():
            if member.is_dir():
                _check_folder(member.filename)
                continue
            if (member.external_attr >> 16) & 0o170000 not in (0, 0o100000):
                raise Problem(422, f"the archive holds {member.filename!r}, which is no plain file", MEND)
            if is_litter(member.filename):
                yield member.filename, member.file_size, None
                continue
            check_name(member.filename)
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise Problem(
                    422, f"{member.filename} is packed in an unusual way", "send a zip that is deflated or stored"
                )
            if member.file_size > limits.unpacked_bytes:
                raise Problem(
                    413, f"{member.filename} has {member.file_size} bytes", f"send at most {limits.unpacked_bytes}"
                )
            with file.open(member) as content:
                yield member.filename, member.file_size, content


def _too_large(most: int) -> Problem:
    return Problem(
        413,
        f"the archive unpacks to more than the {most} bytes that are allowed for its size",
        "send a smaller trace, pack it less, or register it by path",
    )


def _too_many(limits: Limits) -> Problem:
    return Problem(422, f"the archive has more than {limits.archive_members} members", "send fewer, larger shards")


def check_name(name: str) -> None:
    """Raise Problem (422) unless a file of this name may be written below a folder, and readers may know it."""
    if not NAME.fullmatch(name):
        raise Problem(422, f"{name[:100]!r} is no file of a trace or recording", MEND)


def _check_folder(name: str) -> None:
    if name.startswith("/") or ".." in name.split("/"):
        raise Problem(422, f"the archive holds the folder {name[:100]!r}", MEND)


class _Bounded(io.RawIOBase):
    """A file of which no more than `LARGEST_HEADER` bytes are read at once."""

    def __init__(self, inner: IO[bytes]) -> None:
        self.inner = inner

    def read(self, size: int = -1) -> bytes:
        if size > LARGEST_HEADER:
            raise ValueError(f"one of its headers has {size} bytes; at most {LARGEST_HEADER} are allowed")
        content = self.inner.read(LARGEST_HEADER + 1 if size < 0 else size)
        if len(content) > LARGEST_HEADER:
            raise ValueError(f"one of its headers has more than {LARGEST_HEADER} bytes")
        return content

    def seek(self, offset: int, whence: int = 0) -> int:
        if whence == 0 and offset < 0:
            raise ValueError(f"one of its members begins at byte {offset}")
        return self.inner.seek(offset, whence) if whence else self.inner.seek(offset)

    def tell(self) -> int:
        return self.inner.tell()

    def seekable(self) -> bool:
        return True

    def close(self) -> None:
        """The inner file is closed by whoever opened it."""
