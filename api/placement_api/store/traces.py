"""Traces that are kept: taken in whole or not at all, named by their content."""

from __future__ import annotations

import io
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from placement.support.atomic_files import make_folder, write_atomic
from placement.traces.storage.content_digest import content_digest
from placement.traces.storage.litter import is_litter, left_out
from placement.traces.trace import Trace, open_trace
from placement.workload.counts_file import ExpertCounts, is_counts_file, read_counts
from placement_api.archives import SUFFIXES, check_name
from placement_api.problems import Problem
from placement_api.reading import Found, ReadAs, found_of, innermost, read
from placement_api.settings import Limits
from placement_api.store.files import Entry, Files
from placement_api.store.s3 import Buckets, Place
from placement_api.store.tables import TraceRow
from placement_api.store.trace_files import digest_of_names, name_below, plain_name, size_of, sync_all

CHUNK = 1 << 20
COUNTS_FILE = "counts.npz"
FOLDER = "traces/"
INCOMING = ".incoming-"


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """A trace that is kept, how it was read if it was a recording of an engine (see `Found`), what was left out."""

    row: TraceRow
    converted: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFolders:
    """`files` keeps a folder for each trace that was sent; what is taken in lies in `folder` meanwhile.

    `allowed` and `stores` are the folders and places of buckets below which traces may be registered.
    """

    folder: Path
    files: Files
    allowed: tuple[Path, ...]
    stores: tuple[Place, ...]
    limits: Limits

    def take(self, upload: Path, file_name: str, read_as: ReadAs | None = None) -> Taken:
        """An uploaded archive or file. Raises Problem, TraceError, OptionError."""
        with self._incoming() as incoming:
            sent = incoming / "sent"
            sent.mkdir()
            name, archive = plain_name(file_name), None
            if name.endswith(SUFFIXES):
                target = sent / name
                shutil.copyfile(upload, target)
            else:
                target, archive = sent / name.partition(".")[0], upload
                target.mkdir()
            found = read(target, incoming, read_as or ReadAs(), self.limits, archive=archive)
            return self._keep(found, incoming, found.notes)

    def take_counts(self, counts: list[Any], **named: object) -> TraceRow:
        """Counts that were written in a request: [L, E], or [Q, L, E] by request."""
        buffer = io.BytesIO()
        try:
            array = np.array(counts)
            np.savez(buffer, counts=array, **{key: np.asarray(one) for key, one in named.items() if one is not None})  # type: ignore[arg-type]
        except (ValueError, OverflowError):
            raise Problem(422, "counts have rows of different lengths", "give [layers][experts]") from None
        with self._incoming() as incoming:
            path = incoming / COUNTS_FILE
            write_atomic(path, buffer.getvalue())
            return self._keep(found_of(path, read_counts(path)), incoming).row

    def register(self, path: str, read_as: ReadAs | None = None) -> Taken:
        """A trace that stays where it is, below an allowed folder; a recording is converted and kept.

        Raises Problem.
        """
        given = Path(path)
        try:
            wanted = given.resolve()
        except (OSError, ValueError, RuntimeError):
            raise Problem(422, f"path {path[:200]!r} is no path", "give the folder of a trace") from None
        if not given.is_absolute() or not any(wanted.is_relative_to(folder.resolve()) for folder in self.allowed):
            where = ", ".join(map(str, self.allowed)) or "no folder: start the service with --traces-folder"
            raise Problem(422, f"path {path[:200]!r} is not below an allowed folder", f"allowed: {where}")
        for one in wanted.rglob("*"):
            if not one.resolve().is_relative_to(wanted):
                raise Problem(422, f"{one.name} is a link out of the folder", "give a folder of plain files")
        with self._incoming() as incoming:
            found = read(wanted, incoming, read_as or ReadAs(), self.limits)
            if found.converted is not None:
                return self._keep(found, incoming)
            self._check(found)
            return Taken(row=_row(found, digest_of_names(wanted), "path", str(wanted), size_of(wanted)))

    def fetch(self, url: str, read_as: ReadAs | None = None) -> Taken:
        """What is below an allowed place of a bucket, fetched and kept: a file, an archive, or a folder of files.

        Raises Problem, OptionError.
        """
        place = Place.parse(url)
        if not any(store.holds(place) for store in self.stores):
            where = ", ".join(map(str, self.stores)) or "no store: start the service with --traces-store"
            raise Problem(422, f"url {url[:200]!r} is not below an allowed store", f"allowed: {where}")
        buckets = Buckets()
        found = list(islice(buckets.list(place), self.limits.archive_members + 1))
        if all(is_litter(name_below(place, one)) for one in found):
            raise Problem(422, f"there is nothing at {url[:200]!r}", "give an object, or the folder of some")
        if len(found) > self.limits.archive_members:
            most = self.limits.archive_members
            raise Problem(422, f"{url[:200]!r} has more than {most} objects", "give a folder of it")
        with self._incoming() as incoming:
            sent = incoming / "fetched"
            notes = self._download(buckets, place, found, sent)
            if sent.is_file():
                return self.take(sent, place.key, read_as)
            named = sent.rename(incoming / plain_name(place.key))
            return self._keep(read(innermost(named), incoming, read_as or ReadAs(), self.limits), incoming, notes)

    def path_of(self, row: TraceRow) -> Path:
        """Where the trace lies on this machine. Raises Problem if a registered one has changed since."""
        if row.source != "path":
            return self.files.local(FOLDER + row.path)
        path = Path(row.path)
        if digest_of_names(path) != row.id:
            what = f"the trace {row.id} of {row.name} has changed since it was registered"
            raise Problem(409, what, "register it again")
        return path

    def remove(self, row: TraceRow) -> None:
        if row.source != "path":
            self.files.remove(FOLDER + row.id)

    def kept(self) -> dict[str, float]:
        """When the youngest file of each trace was written, by id; what was not taken in to its end has none."""
        youngest: dict[str, float] = {}
        for entry in self.files.list(FOLDER):
            name = entry.key.split("/")[1]
            youngest[name] = max(entry.modified, youngest.get(name, 0.0))
        for path in self.folder.glob(f"{INCOMING}*"):
            youngest[path.name] = max(path.stat().st_mtime, youngest.get(path.name, 0.0))
        return youngest

    def drop(self, names: set[str]) -> None:
        """Remove what `kept` told of."""
        for name in names:
            self.files.remove(FOLDER + name)
            if name.startswith(INCOMING):
                shutil.rmtree(self.folder / name, ignore_errors=True)

    def _download(self, buckets: Buckets, place: Place, found: list[Entry], sent: Path) -> list[str]:
        """Fetch what was found; the note on objects that were left out, if there were any."""
        left, litter = self.limits.unpacked_bytes, []
        for one in found:
            name = name_below(place, one)
            if is_litter(name):
                litter.append(name)
                continue
            if name:
                check_name(name)
            target = sent / name
            left -= one.num_bytes
            if left >= 0:
                buckets.download(Place(bucket=place.bucket, key=one.key), target)
                left -= max(target.stat().st_size - one.num_bytes, 0)  # it may have grown meanwhile
            if left < 0:
                most = f"more than {self.limits.unpacked_bytes} bytes"
                raise Problem(413, f"{str(place)[:200]} has {most}", "give a smaller part of it")
        return left_out(litter)

    def _keep(self, found: Found, incoming: Path, notes: Sequence[str] = ()) -> Taken:
        self._check(found)
        path, file_name = Path(found.path), ""
        if path.is_file():
            file_name = f"counts{path.suffix}"
            (incoming / "kept").mkdir()
            path = path.rename(incoming / "kept" / file_name).parent
        files = [one for one in path.rglob("*") if one.is_file()]
        digest, num_bytes = content_digest((str(one.relative_to(path)), one) for one in files), size_of(path)
        sync_all(path)
        self.files.take(FOLDER + digest, path)
        row = _row(found, digest, "upload", f"{digest}/{file_name}".rstrip("/"), num_bytes)
        return Taken(row=row, converted=found.converted, notes=tuple(notes))

    def _check(self, found: Found) -> None:
        for what, value, most in (
            ("layers", found.num_layers, self.limits.layers),
            ("experts", found.num_experts, self.limits.experts),
        ):
            if value > most:
                raise Problem(422, f"the trace has {value} {what}", f"at most {most} are allowed here")

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        make_folder(self.folder)
        path = Path(tempfile.mkdtemp(prefix=INCOMING, dir=self.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def open_input(paths: list[Path], top_k: int) -> Trace | ExpertCounts:
    """What the library solves: traces, or one file of counts. Raises Problem."""
    if not any(is_counts_file(path) for path in paths):
        return open_trace([str(path) for path in paths])
    if len(paths) > 1:
        raise Problem(422, "counts and other traces do not go together", "give one trace of counts, or traces alone")
    return read_counts(paths[0], top_k)


def _row(found: Found, digest: str, source: str, path: str, num_bytes: int) -> TraceRow:
    return TraceRow(
        id=digest,
        kind=found.kind,
        source=source,
        path=path,
        name=found.name,
        num_bytes=num_bytes,
        num_tokens=found.num_tokens,
        num_requests=found.num_requests,
        num_layers=found.num_layers,
        num_experts=found.num_experts,
        top_k=found.top_k,
        caller="",
        reader=found.converted["reader"] if found.converted else "",
        created=time.time(),
        used=time.time(),
    )
