"""Counts in safetensors files: of a whole trace, and of the segments from which an interrupted count goes on.

A file of a segment says in its header what was counted: which rows of which shards, with hashes of their content.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file

from placement.core.model import Model
from placement.errors import TraceError
from placement.support.tensor_file import write_tensors
from placement.traces.checked import check_ids
from placement.traces.format import id_dtype, is_short
from placement.traces.storage.stored_path import StoredPath
from placement.traces.trace import Span, Trace
from placement.workload.content_hash import hash_span
from placement.workload.count_segment import SegmentCounts
from placement.workload.counted import CountedTrace, counted_of
from placement.workload.segment import Plan, Segment
from placement.workload.workload import Workload

SIDES = ("train", "held_out")
# field: dtypes that it may have in a file, shape letters
_FIELDS = {
    "load_LE": ("u4 u8", "LE"),
    "coact_LEE": ("u4 u8", "LEE"),
    "sample_key_S": ("u8", "S"),
    "sample_owner_S": ("u8", "S"),
    "sample_ids_SLK": ("u1 u2 i2 i4", "SLK"),
    "profile_key_Q": ("u8", "Q"),
    "profile_QLE": ("u2 u4", "QLE"),
}
_COUNTS = {"load_LE": np.int64, "coact_LEE": np.int64, "profile_QLE": np.uint32}  # dtypes in memory


Names = dict[Path | StoredPath, str]  # of the folders of a trace


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CountedShard:
    """Rows `start:stop` of a shard that were counted; hashes in hex of their content and of the requests' ids.

    trace  name of the shard's folder, with as many of those above as tell the folders of the trace apart
    """

    trace: str
    shard: str
    start: int
    stop: int
    content: str
    requests: str


class Settings(BaseModel):
    """What counts must have in common to be added."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    seed: int = Field(ge=-(2**63), lt=2**63)
    holdout: float = Field(ge=0, lt=1)
    sample_tokens: int = Field(ge=1)
    profile_requests: int = Field(ge=1)


def write_packed(path: Path, counted: CountedTrace, metadata: dict[str, str] | None = None) -> None:
    """Write the arrays of every side, whole or not at all: counts in as many bits as are enough. Raises OutputError."""
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, side in zip(SIDES, counted.sides, strict=False):
        arrays[f"{name}.num_tokens"] = np.array([side.num_tokens], dtype=np.uint64)
        for field in _FIELDS:
            values = getattr(side, field)
            if field in _COUNTS:
                small, large = _FIELDS[field][0].split()
                values = values.astype(small if values.max(initial=0) <= np.iinfo(small).max else large)
            arrays[f"{name}.{field}"] = values
    write_tensors(path, arrays, metadata)


def read_packed(path: Path, model: Model, settings: Settings) -> CountedTrace:
    """What `write_packed` wrote of this model and these settings. Raises TraceError where the file holds anything
    else."""
    try:
        arrays = load_file(path)
        names = SIDES if settings.holdout else SIDES[:1]
        return counted_of(settings.holdout, tuple(_side(arrays, name, model, settings) for name in names))
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, AttributeError) as error:  # numpy has no F8
        told = getattr(error, "strerror", None) or error
        raise TraceError(f"cannot read {path}: {told}; remove it and count again") from None


def _side(arrays: dict[str, npt.NDArray[Any]], name: str, model: Model, settings: Settings) -> Workload:
    sizes = {"L": model.num_layers, "E": model.num_experts, "K": model.top_k}
    fields: dict[str, Any] = {}
    for field, (dtypes, letters) in _FIELDS.items():
        values = arrays[f"{name}.{field}"]
        shape = tuple(sizes.setdefault(letter, size) for letter, size in zip(letters, values.shape, strict=True))
        if values.shape != shape or values.dtype.str[1:] not in dtypes.split():
            raise ValueError(
                f"{name}.{field} has shape {list(values.shape)} and dtype {values.dtype}, not {list(shape)}"
            )
        fields[field] = values.astype(_COUNTS.get(field, values.dtype), copy=False)
    ids = fields["sample_ids_SLK"]
    if ids.dtype != id_dtype(model.num_experts, short=is_short(ids)) or ids.max(initial=0) >= model.num_experts:
        raise ValueError(f"{name}.sample_ids_SLK has ids that are out of range of {model.num_experts} experts")
    if sizes["S"] > settings.sample_tokens or sizes["Q"] > settings.profile_requests:
        raise ValueError(f"{name} has more sampled tokens or requests than its settings say")
    num_tokens = int(arrays[f"{name}.num_tokens"][0])
    _check_sums(name, model, num_tokens, fields)
    return Workload(
        model=model,
        num_tokens=num_tokens,
        **settings.model_dump(exclude={"holdout"}),
        **fields,
    )


def _check_sums(name: str, model: Model, num_tokens: int, fields: dict[str, Any]) -> None:
    """Raise ValueError unless the counts are those of so many top-k sets, and the samples in order."""
    load_LE, keys, short = fields["load_LE"], fields["profile_key_Q"], is_short(fields["sample_ids_SLK"])
    lacking_L = num_tokens * model.top_k - load_LE.sum(axis=1)
    if (lacking_L < 0).any() or lacking_L.any() != short:
        raise ValueError(f"{name}.load_LE is not that of {num_tokens} tokens")
    lone_LE = load_LE * (model.top_k - 1) - fields["coact_LEE"].sum(axis=2)  # pairs that short sets lack
    if (lone_LE < 0).any() or (lone_LE.any() and not short):
        raise ValueError(f"{name}.coact_LEE and {name}.load_LE do not agree")
    tokens = fields["sample_key_S"]
    if (keys[1:] <= keys[:-1]).any() or (tokens[1:] < tokens[:-1]).any():
        raise ValueError(f"{name} has samples that are not in order")
    for layer in range(model.num_layers):
        if check_ids(np.ascontiguousarray(fields["sample_ids_SLK"][:, layer]), model.num_experts)[0]:
            raise ValueError(f"{name}.sample_ids_SLK has a set that names an expert twice or is no set")


def trace_names(trace: Trace) -> Names:
    """A short name of every folder of the trace."""
    paths = {shard.path.parent: Path(str(shard.path.parent)) for shard in trace.shards}
    above = Path(os.path.commonpath(paths.values())) if len(paths) > 1 else next(iter(paths.values())).parent
    return {parent: path.relative_to(above).as_posix() for parent, path in paths.items()}


def piece_name(segment: Segment, names: Names) -> str:
    rows = [[names[span.shard.path.parent], span.shard.path.name, span.start, span.stop] for span in segment]
    return f"{hashlib.blake2b(json.dumps(rows).encode(), digest_size=12).hexdigest()}.safetensors"


def write_piece(
    path: Path, plan: Plan, segment: Segment, counts: SegmentCounts, names: Names, counted: CountedTrace
) -> None:
    """Write what was counted of a segment, whole or not at all. Raises OutputError."""
    entries = []
    read = zip(segment, counts.hashes, counts.requests, counts.stats, strict=True)
    for span, content, requests, stat in read:
        source = CountedShard(
            trace=names[span.shard.path.parent],
            shard=span.shard.path.name,
            start=span.start,
            stop=span.stop,
            content=f"{content:016x}",
            requests=_requests_hash(plan, span, requests),
        )
        entries.append({"source": asdict(source), "num_requests": requests, "stat": stat})
    write_packed(path, counted, metadata={"spans": json.dumps(entries)})


def is_counted(path: Path, plan: Plan, segment: Segment) -> bool:
    """True if the piece at `path` holds what counting the segment would give: the same requests, unchanged files."""
    if not path.exists():
        return False
    try:
        entries = _entries(path)
        return len(entries) == len(segment) and all(
            _is_unchanged(entry, span, plan) for entry, span in zip(entries, segment, strict=True)
        )
    except (TraceError, LookupError, TypeError, ValueError):
        return False  # it was damaged


def piece_sources(path: Path) -> list[CountedShard]:
    """What the piece was counted from. Raises TraceError."""
    return [CountedShard(**entry["source"]) for entry in _entries(path)]


def _is_unchanged(entry: dict[str, Any], span: Span, plan: Plan) -> bool:
    """A file that nobody touched is; of another its content decides, for copies have other times."""
    source, requests = CountedShard(**entry["source"]), entry["num_requests"]
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
