"""Traces that are kept: taken in whole or not at all, named by their content."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from placement.files import make_folder, sync_folder, write_atomic
from placement.traces import Trace, open_trace
from placement.traces.counts_file import Counts, is_counts_file, read_counts
from placement_api.archives import unpack
from placement_api.problems import Problem
from placement_api.settings import Limits
from placement_api.store.tables import TraceRow

CHUNK = 1 << 20
COUNTS_FILE = "counts.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFolders:
    """`folder` holds a folder for each uploaded trace; `allowed` are those below which traces may be registered."""

    folder: Path
    allowed: tuple[Path, ...]
    limits: Limits

    def take(self, upload: Path, file_name: str, top_k: int | None = None) -> TraceRow:
        """An uploaded archive, or a file of counts. Raises Problem, TraceError, OptionError."""
        with self._incoming() as incoming:
            if not is_counts_file(file_name):
                unpack(upload, incoming, self.limits)
                return self._keep(incoming, open_trace(incoming), "")
            target = incoming / f"counts{Path(file_name).suffix}"
            shutil.copyfile(upload, target)
            with target.open("rb") as file:
                os.fsync(file.fileno())
            return self._keep(incoming, read_counts(target, top_k), target.name)

    def take_counts(self, counts: list[Any], **named: object) -> TraceRow:
        """Counts that were written in a request: [L, E], or [Q, L, E] by request."""
        buffer = io.BytesIO()
        try:
            array = np.array(counts)
            np.savez(buffer, counts=array, **{key: np.asarray(one) for key, one in named.items() if one is not None})  # type: ignore[arg-type]
        except (ValueError, OverflowError):
            raise Problem(422, "counts have rows of different lengths", "give [layers][experts]") from None
        with self._incoming() as incoming:
            write_atomic(incoming / COUNTS_FILE, buffer.getvalue())
            return self._keep(incoming, read_counts(incoming / COUNTS_FILE), COUNTS_FILE)

    def register(self, path: str) -> TraceRow:
        """A trace that stays where it is, below an allowed folder. Raises Problem (422)."""
        given = Path(path)
        try:
            wanted = given.resolve()
        except (OSError, ValueError, RuntimeError):
            raise Problem(422, f"path {path[:200]!r} is no path", "give the folder of a trace") from None
        if not given.is_absolute() or not any(wanted.is_relative_to(folder.resolve()) for folder in self.allowed):
            where = ", ".join(map(str, self.allowed)) or "no folder: start the service with --traces-folder"
            raise Problem(422, f"path {path[:200]!r} is not below an allowed folder", f"allowed: {where}")
        if is_counts_file(wanted):
            opened: Trace | Counts = read_counts(wanted)
        else:
            opened = open_trace(wanted)
            outside = [shard.path for shard in opened.shards if not shard.path.resolve().is_relative_to(wanted)]
            if outside:
                raise Problem(422, f"{outside[0].name} is a link out of the folder", "give a folder of plain files")
        digest = digest_of_names(wanted)
        return self._row(opened, digest, "path", str(wanted), size_of(wanted))

    def path_of(self, row: TraceRow) -> Path:
        """Where the trace lies. Raises Problem if a registered one has changed since."""
        path = Path(row.path) if row.source == "path" else self.folder / row.path
        if row.source == "path" and digest_of_names(path) != row.id:
            raise Problem(409, f"the trace {row.path} has changed since it was registered", "register it again")
        return path

    def remove(self, row: TraceRow) -> None:
        if row.source == "upload":
            shutil.rmtree(self.folder / row.id, ignore_errors=True)

    def _keep(self, incoming: Path, opened: Trace | Counts, file_name: str) -> TraceRow:
        digest = _digest_of_content(incoming)
        row = self._row(opened, digest, "upload", f"{digest}/{file_name}".rstrip("/"), size_of(incoming))
        try:
            incoming.rename(self.folder / digest)
        except OSError:  # the same trace is there already
            if not (self.folder / digest).is_dir():
                raise
        sync_folder(self.folder)
        return row

    def _row(self, opened: Trace | Counts, digest: str, source: str, path: str, num_bytes: int) -> TraceRow:
        model = opened.model
        for what, value, most in (
            ("layers", model.num_layers, self.limits.layers),
            ("experts", model.num_experts, self.limits.experts),
        ):
            if value > most:
                raise Problem(422, f"the trace has {value} {what}", f"at most {most} are allowed here")
        counts = isinstance(opened, Counts)
        return TraceRow(
            id=digest,
            kind="counts" if counts else "trace",
            source=source,
            path=path,
            name=model.name[:200],
            num_bytes=num_bytes,
            num_tokens=opened.num_tokens if isinstance(opened, Counts) else opened.num_tokens_stored,
            num_requests=len(opened.count_QLE) if isinstance(opened, Counts) else len(opened.requests),
            num_layers=model.num_layers,
            num_experts=model.num_experts,
            top_k=model.top_k,
            created=time.time(),
            used=time.time(),
        )

    @contextmanager
    def _incoming(self) -> Iterator[Path]:
        make_folder(self.folder)
        path = Path(tempfile.mkdtemp(prefix=".incoming-", dir=self.folder))
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)


def open_input(paths: list[Path], top_k: int) -> Trace | Counts:
    """What the library solves: traces, or one file of counts. Raises Problem."""
    if not any(is_counts_file(path) for path in paths):
        return open_trace([str(path) for path in paths])
    if len(paths) > 1:
        raise Problem(422, "counts and other traces do not go together", "give one trace of counts, or traces alone")
    return read_counts(paths[0], top_k)


def size_of(path: Path) -> int:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    return sum(one.stat().st_size for one in files)


def digest_of_names(path: Path) -> str:
    """Of names, sizes and times: enough to see that a registered trace was changed, without reading it."""
    files = [path] if path.is_file() else sorted(path.rglob("trace.json")) + sorted(path.rglob("shard-*.safetensors"))
    lines = [f"{one}\n{one.stat().st_size}\n{one.stat().st_mtime_ns}" for one in files]
    return hashlib.sha256("\n".join([str(path), *lines]).encode(errors="surrogateescape")).hexdigest()[:32]


def _digest_of_content(folder: Path) -> str:
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        total.update(f"{path.relative_to(folder)}\n{digest}\n".encode())
    return total.hexdigest()[:32]
