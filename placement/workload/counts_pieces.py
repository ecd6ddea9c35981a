"""Pieces of a count: one file for each segment, which says what it was counted from."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from placement.errors import TraceError
from placement.traces.storage.stored_path import StoredPath
from placement.traces.trace import Trace
from placement.workload.content_hash import hash_span
from placement.workload.count_segment import SegmentCounts
from placement.workload.counted import counted_of
from placement.workload.counts_manifest import Source
from placement.workload.segment import Plan, Segment, Span
from placement.workload.workload_arrays import write_packed


def trace_names(trace: Trace) -> dict[Path | StoredPath, str]:
    """A short name of every folder of the trace."""
    paths = {shard.path.parent: Path(str(shard.path.parent)) for shard in trace.shards}
    above = Path(os.path.commonpath(paths.values())) if len(paths) > 1 else next(iter(paths.values())).parent
    return {parent: path.relative_to(above).as_posix() for parent, path in paths.items()}


def piece_name(segment: Segment, names: dict[Path | StoredPath, str]) -> str:
    rows = [[names[span.shard.path.parent], span.shard.path.name, span.start, span.stop] for span in segment.spans]
    return f"{hashlib.blake2b(json.dumps(rows).encode(), digest_size=12).hexdigest()}.safetensors"


def write_piece(
    path: Path, segment: Segment, counts: SegmentCounts, names: dict[Path | StoredPath, str], holdout: float
) -> None:
    """Write the file, whole or not at all. Raises OutputError."""
    entries = []
    read = zip(segment.spans, counts.hashes, counts.requests, counts.stats, strict=True)
    for span, content, requests, stat in read:
        source = Source(
            trace=names[span.shard.path.parent],
            shard=span.shard.path.name,
            start=span.start,
            stop=span.stop,
            content=f"{content:016x}",
            requests=_requests_hash(segment.plan, span, requests),
        )
        entries.append({"source": asdict(source), "num_requests": requests, "stat": stat})
    write_packed(path, counted_of(holdout, counts.sides), metadata={"spans": json.dumps(entries)})


def is_counted(path: Path, segment: Segment) -> bool:
    """True if the piece at `path` holds what counting the segment would give: the same requests, unchanged files."""
    if not path.exists():
        return False
    try:
        entries = _entries(path)
        return len(entries) == len(segment.spans) and all(
            _is_unchanged(entry, span, segment.plan) for entry, span in zip(entries, segment.spans, strict=True)
        )
    except (TraceError, LookupError, TypeError, ValueError):
        return False  # it was damaged


def piece_sources(path: Path) -> list[Source]:
    """What the piece was counted from. Raises TraceError."""
    return [Source(**entry["source"]) for entry in _entries(path)]


def _is_unchanged(entry: dict[str, Any], span: Span, plan: Plan) -> bool:
    """A file that nobody touched is; of another its content decides, for copies have other times."""
    source, requests = Source(**entry["source"]), entry["num_requests"]
    if requests > span.listed or source.requests != _requests_hash(plan, span, requests):
        return False
    if tuple(entry["stat"]) == span.shard.stat():
        return True
    return source.content == f"{hash_span(span, plan.model.num_layers):016x}"


def _requests_hash(plan: Plan, span: Span, requests: int) -> str:
    """Of the keys, and so of the ids, of the first requests of the span's folder."""
    keys = plan.key_Q[span.offset : span.offset + requests]
    return hashlib.blake2b(keys.astype("<u8").tobytes(), digest_size=8).hexdigest()


def _entries(path: Path) -> list[dict[str, Any]]:
    try:
        with safe_open(path, framework="np") as file:
            entries: list[dict[str, Any]] = json.loads((file.metadata() or {})["spans"])
            return entries
    except (SafetensorError, OSError, LookupError, ValueError) as error:
        raise TraceError(f"cannot read {path}: {error}; remove it and count again") from None
