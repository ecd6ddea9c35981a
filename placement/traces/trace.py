"""A trace: one or several folders of `expert-trace/1`, seen as one sequence of tokens, never loaded as a whole."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.errors import TraceError
from placement.support.parallel import run_tasks
from placement.traces.format import Manifest, RequestEntry, Shard, read_manifest
from placement.traces.storage.litter import is_litter
from placement.traces.storage.stored_path import StoredPath, is_url

CHUNK_TOKENS = 131_072
REQUESTS_AT_ONCE = 16  # to shared storage, for the headers of shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Tokens of one shard that a pass over the trace reads together.

    rows_T    rows of the shard to keep, int64, ascending; None keeps rows start:stop
    request_T index of each kept token's request in the whole trace, int32
    """

    shard: Shard
    start: int
    stop: int
    rows_T: npt.NDArray[np.int64] | None
    request_T: npt.NDArray[np.int32]

    def ids_TK(self, layer: int) -> npt.NDArray[Any]:
        """Logical expert ids of the kept tokens in one layer, uint8 or uint16."""
        return self._layer("expert_ids", layer)

    def weights_TK(self, layer: int) -> npt.NDArray[Any]:
        """Router weights, float16; only where `shard.has_weights`."""
        return self._layer("expert_weights", layer)

    def column_T(self, name: str) -> npt.NDArray[Any]:
        values = self.shard.column(name, self.start, self.stop)
        return values if self.rows_T is None else values[self.rows_T]

    def _layer(self, name: str, layer: int) -> npt.NDArray[Any]:
        values = self.shard.layer(name, layer, self.start, self.stop)
        return values if self.rows_T is None else values[self.rows_T]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Of each request only the tokens before `position_Q` are kept, or, if `rest`, only those from there on.

    position_Q  int64 [Q]; None: the cut is between prefill and decode
    """

    position_Q: npt.NDArray[np.int64] | None
    rest: bool

    @property
    def column(self) -> str:
        """What of a token decides."""
        return "phase" if self.position_Q is None else "position"

    def keeps(self, column_T: npt.NDArray[Any], request_T: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
        """Which tokens are kept, bool [T], by that column of them."""
        rest_T = column_T > 0 if self.position_Q is None else column_T >= self.position_Q[request_T]
        return np.asarray(rest_T if self.rest else ~rest_T)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Shards, the requests they belong to, and which of those requests are kept.

    offsets     index of the first request of each shard's folder in `requests`
    selected_Q  bool [Q]; None keeps all
    cut         which of their tokens are kept; None keeps all
    extras      unknown keys of the (first) manifest
    """

    model: Model
    requests: tuple[RequestEntry, ...]
    shards: tuple[Shard, ...]
    offsets: tuple[int, ...]
    counts: tuple[int, ...]
    selected_Q: npt.NDArray[np.bool_] | None = None
    cut: Cut | None = None
    extras: dict[str, Any]

    @property
    def num_tokens_stored(self) -> int:
        """Tokens in the shards, those of requests that are not selected included."""
        return sum(shard.num_tokens for shard in self.shards)

    def select(self, selected_Q: npt.NDArray[np.bool_]) -> Trace:
        """The same trace with only these of its requests; nothing is copied."""
        return replace(self, selected_Q=np.asarray(selected_Q, dtype=bool))

    def blocks(self) -> Iterator[Block]:
        """Kept tokens in order, in pieces of bounded size. Raises TraceError on a request index out of range."""
        for shard, offset, count in zip(self.shards, self.offsets, self.counts, strict=True):
            for start in range(0, shard.num_tokens, CHUNK_TOKENS):
                stop = min(start + CHUNK_TOKENS, shard.num_tokens)
                whole = requests_of(shard, shard.column("request", start, stop), count) + np.int32(offset)
                kept_T = self._kept(shard, start, whole)
                if kept_T is None:
                    yield Block(shard=shard, start=start, stop=stop, rows_T=None, request_T=whole)
                    continue
                rows = np.flatnonzero(kept_T)
                if len(rows):
                    yield Block(shard=shard, start=start, stop=stop, rows_T=rows, request_T=whole[rows])

    def _kept(self, shard: Shard, start: int, request_T: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_] | None:
        """Which of the tokens from row `start` on are kept, bool [T]; None: all."""
        kept_T = None if self.selected_Q is None else self.selected_Q[request_T]
        if self.cut is None:
            return kept_T
        mine_T = self.cut.keeps(shard.column(self.cut.column, start, start + len(request_T)), request_T)
        return np.asarray(mine_T if kept_T is None else mine_T & kept_T)

    def tokens_Q(self) -> npt.NDArray[np.int64]:
        """Kept tokens of every request, int64 [Q]."""
        total = np.zeros(len(self.requests), dtype=np.int64)
        for block in self.blocks():
            total += np.bincount(block.request_T, minlength=len(total))
        return total


def requests_of(shard: Shard, request_T: npt.NDArray[np.int32], listed: int) -> npt.NDArray[np.int32]:
    """`request_T`, read from the shard. Raises TraceError where it is no index of the `listed` requests."""
    low, high = int(request_T.min()), int(request_T.max())
    if low < 0 or high >= listed:
        bad = low if low < 0 else high
        raise TraceError(
            f"{shard.path}: request index {bad} is out of range; trace.json lists {listed} requests "
            f"(0 to {listed - 1}); mend the manifest or the shard"
        )
    return request_T


def open_trace(paths: str | Path | Iterable[str | Path]) -> Trace:
    """Open folders, globs of folders, or folders of such folders as one trace; also on shared storage, s3://bucket/...

    Headers and manifests are checked; expert ids are checked when they are first counted. Raises TraceError.
    """
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    folders = [folder for path in given for folder in _folders(path)]
    if not folders:
        raise TraceError("no trace was given; give one or more folders that hold a trace.json")
    if len(set(folders)) < len(folders):
        twice = next(folder for folder in folders if folders.count(folder) > 1)
        raise TraceError(f"{twice} is given twice; its tokens would count double; name it once")
    manifests = [read_manifest(folder) for folder in folders]
    model = manifests[0].routing()
    requests: list[RequestEntry] = []
    shards: list[Shard] = []
    offsets: list[int] = []
    counts: list[int] = []
    for folder, manifest in zip(folders, manifests, strict=True):
        if not model.same_routing(manifest.routing()):
            raise TraceError(
                f"{folder} is of another model than {folders[0]}: layers, num_experts={manifest.num_experts} and "
                f"top_k={manifest.top_k} must equal num_experts={model.num_experts}, top_k={model.top_k} and its layers"
            )
        found = _shards(folder, manifest, model)
        shards += found
        offsets += [len(requests)] * len(found)
        counts += [len(manifest.requests)] * len(found)
        requests += manifest.requests
    if not any(shard.num_tokens for shard in shards):
        raise TraceError(f"{folders[0]} is empty: it has no tokens; record some requests first")
    return Trace(
        model=model,
        requests=tuple(requests),
        shards=tuple(shards),
        offsets=tuple(offsets),
        counts=tuple(counts),
        extras=manifests[0].extras(),
    )


def _folders(path: str | Path | StoredPath) -> Sequence[Path | StoredPath]:
    text = str(path)
    try:
        matches: Sequence[Path | StoredPath] = _stored(text) if is_url(path) else _local(text)
        if not matches:
            raise TraceError(f"{text} does not exist; give a folder that holds a trace.json")
        folders: list[Path | StoredPath] = []
        for match in matches:
            if match.is_file():
                if match.name != "trace.json":
                    raise TraceError(f"{match} is a file; give the folder that holds its trace.json")
                match = match.parent
            inner = [] if (match / "trace.json").exists() else sorted(p.parent for p in match.glob("*/trace.json"))
            folders += [folder for folder in inner if not is_litter(f"{folder.name}/trace.json")] or [match]
        return [folder.resolve() for folder in folders]
    except (OSError, ValueError, RuntimeError) as error:  # too long, not allowed, or links in a circle
        what = getattr(error, "strerror", None) or error
        raise TraceError(f"{text} is no path of a folder: {what}; give a folder that holds a trace.json") from None


def _local(text: str) -> list[Path]:
    return [Path(text)] if Path(text).exists() else sorted(Path(m) for m in glob.glob(text))  # noqa: PTH207


def _stored(text: str) -> list[StoredPath]:
    path = StoredPath(text)
    return [path] if path.exists() else sorted(path.glob("")) if glob.has_magic(text) else []


def _shards(folder: Path | StoredPath, manifest: Manifest, model: Model) -> list[Shard]:
    try:
        paths: Sequence[Path | StoredPath] = sorted(folder.glob("shard-*.safetensors"))
    except OSError as error:
        raise TraceError(f"cannot read {folder}: {error.strerror}") from None
    if isinstance(folder, StoredPath):
        with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
            shards = run_tasks(partial(Shard.open, model=model), paths, pool)
    else:
        shards = [Shard.open(path, model) for path in paths]
    if manifest.recording:
        shards = list(_committed(shards, manifest.num_tokens))
    total = sum(shard.num_tokens for shard in shards)
    if total != manifest.num_tokens:
        raise TraceError(
            f"{folder}: trace.json says num_tokens={manifest.num_tokens} but the {len(shards)} shards hold {total}; "
            f"a shard is missing or left over"
        )
    return [shard for shard in shards if shard.num_tokens]


def _committed(shards: Sequence[Shard], num_tokens: int) -> Iterator[Shard]:
    """The first shards that hold `num_tokens`: a recorder that was killed may have left one that it had not listed."""
    for shard in shards:
        if num_tokens <= 0:
            return
        num_tokens -= shard.num_tokens
        yield shard
