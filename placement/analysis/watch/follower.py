"""What arrives in a folder, each token once: traces, also while they grow, and recordings of engines."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from placement.core.model import Model
from placement.errors import PlacementError, TraceError
from placement.readers.base import ReadOptions
from placement.readers.convert import convert
from placement.traces.format import read_manifest
from placement.traces.storage.litter import is_litter
from placement.traces.trace import Trace, open_trace
from placement.workload.count import count
from placement.workload.workload import Workload

MANIFEST = "trace.json"
Signature = tuple[tuple[str, int, int], ...]  # name, bytes and time of change of every file


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTokens:
    """New tokens of a path, counted, or the line that says why it cannot be read; and what was left out of them.

    trace  the tokens themselves; of a recording only where the follower was told where to leave them
    """

    path: Path
    workload: Workload | None = None
    trace: Trace | None = None
    error: str | None = None
    notes: tuple[str, ...] = ()


class Follower:
    """Reads what is new in `folder`, which may itself be a trace that is being recorded.

    Of a trace (`trace.json` beside shards) the shards that its manifest vouches for are read, each once; a folder of
    shards without a manifest is still being written. Anything else is a recording of an engine; it is read once, as
    soon as two polls find it the same. Names that begin with a dot are left alone. What cannot be read is told of once,
    and tried again when it has changed. Requests of different paths are different, whatever their ids.

    Recordings become traces in folders of `scratch`, which stay; without it they are removed once they are counted.
    """

    def __init__(self, folder: str | Path, model: Model, *, seed: int = 0, scratch: Path | None = None) -> None:
        self._folder = Path(folder)
        if not self._folder.is_dir():
            raise TraceError(f"{folder} is no folder; give one in which traces arrive")
        self._model = model
        self._seed = seed
        self._scratch = scratch
        self._read: set[object] = set()  # shards
        self._done: dict[Path, Signature] = {}  # recordings that are read, and those whose fault was told
        self._seen: dict[Path, Signature] = {}

    def poll(self, *, settled: bool = False) -> Iterator[NewTokens]:
        """What came since the last poll, in the order of names; `settled`: nothing is still being written."""
        for path in self._entries():
            try:
                if (path / MANIFEST).exists():
                    yield from self._trace(path)
                elif not _only_shards(path):
                    yield from self._recording(path, settled)
            except PlacementError as error:
                yield NewTokens(path=path, error=str(error))
            except OSError as error:
                yield NewTokens(path=path, error=f"cannot read {path}: {error.strerror or error}")

    def _entries(self) -> list[Path]:
        if (self._folder / MANIFEST).exists():
            return [self._folder]
        try:
            named = {path: f"{path.name}/{MANIFEST}" if path.is_dir() else path.name for path in self._folder.iterdir()}
            return sorted(path for path, name in named.items() if not is_litter(name))
        except OSError as error:
            raise TraceError(f"cannot read {self._folder}: {error.strerror}; give a folder that stays") from None

    def _trace(self, path: Path) -> Iterator[NewTokens]:
        signature = _signature(path)
        if self._done.get(path) == signature:
            return
        self._done[path] = signature
        manifest = read_manifest(path)
        if manifest.recording and not manifest.num_tokens:
            return
        yield from self._shards(path, open_trace(path))

    def _recording(self, path: Path, settled: bool) -> Iterator[NewTokens]:
        signature = _signature(path)
        last, self._seen[path] = self._seen.get(path), signature
        if self._done.get(path) == signature or not (settled or last == signature):
            return
        self._done[path] = signature
        if path in self._read:
            raise TraceError(f"{path} has changed after it was read; give what is new a name of its own")
        options = ReadOptions(num_experts=self._model.num_experts, top_k=self._model.top_k)
        if self._scratch is not None:
            done = convert(path, self._scratch / f"recording-{len(self._read)}", options=options)
            self._read.add(path)
            yield from self._shards(path, open_trace(done.output), done.notes)
            return
        with tempfile.TemporaryDirectory(prefix="placement-watch-") as scratch:
            done = convert(path, Path(scratch) / "trace", options=options)
            self._read.add(path)
            yield from self._shards(path, open_trace(done.output), done.notes, stays=False)

    def _shards(
        self, path: Path, trace: Trace, notes: tuple[str, ...] = (), *, stays: bool = True
    ) -> Iterator[NewTokens]:
        """The shards that are new; the notes go with the first."""
        if not trace.model.same_routing(self._model):
            raise TraceError(f"{path} is of another model than the map: its layers, experts or top-k differ")
        requests = tuple(one.model_copy(update={"id": f"{path.name}/{one.id}"}) for one in trace.requests)
        for span in trace.spans:
            if span.shard.path in self._read:
                continue
            self._read.add(span.shard.path)
            one = replace(trace, requests=requests, spans=(span,))
            try:
                workload = count(one, seed=self._seed)
                yield NewTokens(path=path, workload=workload, trace=one if stays else None, notes=notes)
                notes = ()
            except TraceError as error:
                yield NewTokens(path=path, error=str(error))


def _only_shards(path: Path) -> bool:
    """True of a folder that holds nothing yet, or shards that wait for their manifest."""
    return path.is_dir() and all(
        is_litter(one.name) or (one.name.startswith("shard-") and one.suffix == ".safetensors")
        for one in path.iterdir()
    )


def _signature(path: Path) -> Signature:
    files = [path] if path.is_file() else [one for one in path.rglob("*") if one.is_file()]
    found = ((str(one), one.stat()) for one in files)
    return tuple(sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in found))
