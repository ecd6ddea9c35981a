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
from placement.traces.format import DRAFT, RequestEntry, Shard, TraceManifest, read_manifest
from placement.traces.storage.litter import is_litter
from placement.traces.storage.stored_path import StoredPath, is_url

CHUNK_TOKENS = 131_072
REQUESTS_AT_ONCE = 16  # to shared storage, for the headers of shards


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Rows `start:stop` of a shard, whose folder lists `listed` requests: those of the trace from `offset` on."""

    shard: Shard
    start: int
    stop: int
    offset: int
    listed: int

    @property
    def num_tokens(self) -> int:
        return self.stop - self.start

    def cut(self, most: int) -> Iterator[Span]:
        """The rows in spans of at most `most`."""
        for start in range(self.start, self.stop, most):
            yield replace(self, start=start, stop=min(start + most, self.stop))

    def request_T(self, column_T: npt.NDArray[np.int32]) -> npt.NDArray[np.int32]:
        """Index of each token's request in the whole trace, of the rows' column `request`.

        Raises TraceError where the folder lists no such request.
        """
        low, high = int(column_T.min()), int(column_T.max())
        if low < 0 or high >= self.listed:
            bad = low if low < 0 else high
            raise TraceError(
                f"{self.shard.path}: request index {bad} is out of range; trace.json lists {self.listed} requests "
                f"(0 to {self.listed - 1}); mend the manifest or the shard"
            )
        return np.asarray(column_T + np.int32(self.offset))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Tokens of one shard that a pass over the trace reads together.

    rows_T    rows of the shard to keep, counted from the span's first, int64, ascending; None keeps all
    request_T index of each kept token's request in the whole trace, int32
    """

    span: Span
    rows_T: npt.NDArray[np.int64] | None
    request_T: npt.NDArray[np.int32]

    @property
    def shard(self) -> Shard:
        return self.span.shard

    def ids_TK(self, layer: int) -> npt.NDArray[Any]:
        """Logical expert ids of the kept tokens in one layer, of the shard's `id_dtype`."""
        return self._kept(self.shard.layer("expert_ids", layer, self.span.start, self.span.stop))

    def weights_TK(self, layer: int) -> npt.NDArray[Any]:
        """Router weights, float16; only where `shard.has_weights`."""
        return self._kept(self.shard.layer("expert_weights", layer, self.span.start, self.span.stop))

    def column_T(self, name: str) -> npt.NDArray[Any]:
        return self._kept(self.shard.column(name, self.span.start, self.span.stop))

    def _kept(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
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

    Attributes:
        spans: All rows of every shard.
        selected_Q: Which requests are kept, bool [Q]; None keeps all.
        cut: Which tokens of the kept requests are kept; None keeps all.
        drafts: Whether drafts that were rejected are kept.
        extras: Unknown keys of the (first) manifest.
    """

    model: Model
    requests: tuple[RequestEntry, ...]
    spans: tuple[Span, ...]
    selected_Q: npt.NDArray[np.bool_] | None = None
    cut: Cut | None = None
    drafts: bool = True
    extras: dict[str, Any]

    @property
    def shards(self) -> tuple[Shard, ...]:
        """The shards, in the order of their folders."""
        return tuple(span.shard for span in self.spans)

    @property
    def num_tokens_stored(self) -> int:
        """Tokens in the shards, those of requests that are not selected included."""
        return sum(span.num_tokens for span in self.spans)

    def select(self, selected_Q: npt.NDArray[np.bool_]) -> Trace:
        """The same trace with only these of its requests; nothing is copied."""
        return replace(self, selected_Q=np.asarray(selected_Q, dtype=bool))

    def without_drafts(self) -> Trace:
        """The same trace without the drafts of speculative decoding that were rejected; nothing is copied."""
        return replace(self, drafts=False)

    def blocks(self) -> Iterator[Block]:
        """Kept tokens in order, in pieces of bounded size.

        Raises:
            TraceError: A shard names a request that the manifest does not list.
        """
        for span in (piece for whole in self.spans for piece in whole.cut(CHUNK_TOKENS)):
            request_T = span.request_T(span.shard.column("request", span.start, span.stop))
            kept_T = self._kept(span, request_T)
            if kept_T is None:
                yield Block(span=span, rows_T=None, request_T=request_T)
            elif kept_T.any():
                rows_T = np.flatnonzero(kept_T)
                yield Block(span=span, rows_T=rows_T, request_T=request_T[rows_T])

    def _kept(self, span: Span, request_T: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_] | None:
        """Which of the span's tokens are kept, bool [T]; None: all."""
        kept_T = None if self.selected_Q is None else self.selected_Q[request_T]
        if self.cut is not None:
            mine_T = self.cut.keeps(span.shard.column(self.cut.column, span.start, span.stop), request_T)
            kept_T = mine_T if kept_T is None else mine_T & kept_T
        if not self.drafts:
            real_T = span.shard.column("phase", span.start, span.stop) != DRAFT
            kept_T = real_T if kept_T is None else real_T & kept_T
        return kept_T

    def tokens_Q(self) -> npt.NDArray[np.int64]:
        """Kept tokens of every request, int64 [Q]."""
        total = np.zeros(len(self.requests), dtype=np.int64)
        for block in self.blocks():
            total += np.bincount(block.request_T, minlength=len(total))
        return total


def open_trace(paths: str | Path | Iterable[str | Path]) -> Trace:
    """Open folders, globs of folders, or folders of such folders as one trace; also on shared storage, s3://bucket/...

    Headers and manifests are checked; expert ids are checked when they are first counted.

    Args:
        paths: One folder, glob or URL, or several, which are read as one trace.

    Raises:
        TraceError: A path holds no trace, a manifest or a header is wrong, or two folders are of different models.
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
    spans: list[Span] = []
    for folder, manifest in zip(folders, manifests, strict=True):
        if not model.same_routing(manifest.routing()):
            raise TraceError(
                f"{folder} is of another model than {folders[0]}: layers, num_experts={manifest.num_experts} and "
                f"top_k={manifest.top_k} must equal num_experts={model.num_experts}, top_k={model.top_k} and its layers"
            )
        place = {"offset": len(requests), "listed": len(manifest.requests)}
        shards = _shards(folder, manifest, model)
        spans += [Span(shard=shard, start=0, stop=shard.num_tokens, **place) for shard in shards]
        requests += manifest.requests
    if not spans:
        raise TraceError(f"{folders[0]} is empty: it has no tokens; record some requests first")
    return Trace(
        model=model,
        requests=tuple(requests),
        spans=tuple(spans),
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


def _shards(folder: Path | StoredPath, manifest: TraceManifest, model: Model) -> list[Shard]:
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
