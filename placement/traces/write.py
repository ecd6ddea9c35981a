"""Writing traces: whole folders that appear at once, complete or not at all."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.core.model import Model
from placement.documents.parts import ModelPart
from placement.errors import OutputError, TraceError
from placement.support.atomic_files import check_new_folder
from placement.traces.checked import checked_ids
from placement.traces.format import (
    SCHEMA,
    SHARD_TOKENS,
    TOKEN,
    RequestEntry,
    TraceManifest,
    write_manifest,
)
from placement.traces.prompts import stored_prompts, write_prompts
from placement.traces.storage.shard_writer import ShardWriter, TokenPiece
from placement.traces.trace import Block, Trace


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A temporary folder beside `path` that is renamed to it when the block ends well, and removed when it does not.

    Raises OutputError where `path` exists and is not an empty folder, or cannot be written.
    """
    path = Path(path)
    check_new_folder(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.part"
    try:
        temporary.mkdir()
        yield temporary
        check_new_folder(path)
        temporary.rename(path)
    except OSError as error:
        raise OutputError(
            f"cannot write {path}: {error.strerror or error}; give a new folder in an existing, writable folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_trace(
    folder: Path,
    pieces: Iterator[TokenPiece],
    *,
    model: Model,
    requests: Sequence[RequestEntry],
    extras: dict[str, Any] | None = None,
    shard_tokens: int = SHARD_TOKENS,
) -> int:
    """Write `pieces` into the existing `folder` as shards of `shard_tokens` and a manifest; returns the tokens.

    `requests` is looked at when all pieces were drawn, so that it may grow with them.
    """
    writer = ShardWriter(folder, model, shard_tokens=shard_tokens)
    for piece in pieces:
        writer.add(piece)
    writer.flush()
    write_manifest(folder, make_manifest(model, writer.num_tokens, requests, extras))
    return writer.num_tokens


def make_manifest(
    model: Model, num_tokens: int, requests: Sequence[RequestEntry], extras: dict[str, Any] | None = None
) -> TraceManifest:
    """`trace.json` of a trace of `model`; `extras` are further keys."""
    known = ModelPart.of(model).model_dump(exclude_unset=True)
    own = {"schema": SCHEMA, "model": known.pop("name"), "num_tokens": num_tokens, "requests": list(requests)}
    return TraceManifest.model_validate({**(extras or {}), **known, **own})


def merge_traces(trace: Trace, out_dir: str | Path, *, scrub: bool = False) -> int:
    """Write the kept tokens of `trace` (one folder or several) to a new folder `out_dir`; returns the tokens written.

    Requests that are not selected are left out, the others keep their order and all their keys. Entries that are equal
    in every key become one: an id names one request wherever it was recorded (as in `count`; prefill and decode workers
    may record the same one). Entries with the same id that differ otherwise stay apart. Other keys of the manifest are
    those of the first folder. Weights are kept if all shards have them. Ids of tokens and prompts are kept, of entries
    that become one the first prompt, unless `scrub`: then none is written.

    Where an error is raised, `out_dir` is as it was before.

    Raises:
        OutputError: `out_dir` exists already, or cannot be written.
        TraceError: A shard of the trace is wrong.
    """
    with new_folder(out_dir) as folder:
        return write_kept(trace, folder, scrub=scrub)


def write_split(rest: Trace, part: Trace, out_dir: str | Path) -> tuple[int, int]:
    """Write `out_dir/train` (rest) and `out_dir/held-out` (part), see `split_requests`; returns the tokens of both.

    Both appear at once. As `merge_traces` otherwise.
    """
    with new_folder(out_dir) as folder:
        sizes = []
        for name, trace in (("train", rest), ("held-out", part)):
            (folder / name).mkdir()
            sizes.append(write_kept(trace, folder / name))
        return sizes[0], sizes[1]


def write_kept(trace: Trace, folder: Path, *, scrub: bool = False) -> int:
    """As `merge_traces`, into an existing empty folder and not atomically."""
    entries: dict[str, int] = {}
    requests: list[RequestEntry] = []
    index_Q = np.full(len(trace.requests), -1, dtype=np.int32)
    for old, entry in enumerate(trace.requests):
        if trace.selected_Q is not None and not trace.selected_Q[old]:
            continue
        index_Q[old] = entries.setdefault(entry.model_dump_json(), len(requests))
        if index_Q[old] == len(requests):
            requests.append(entry)
    weights = all(shard.has_weights for shard in trace.shards)
    pieces = (_piece(trace, block, index_Q, weights, scrub) for block in trace.blocks())
    written = write_trace(folder, pieces, model=trace.model, requests=tuple(requests), extras=trace.extras)
    if not written:
        raise TraceError("the trace has no tokens of the selected requests; select other requests or record more")
    prompts = None if scrub else stored_prompts(trace)
    if prompts is not None:
        source_R = np.full(len(requests), -1, dtype=np.int64)
        known_Q = np.flatnonzero((prompts.length_Q > 0) & (index_Q >= 0))[::-1]  # of several the first is written last
        source_R[index_Q[known_Q]] = known_Q
        write_prompts(folder, prompts.take(source_R))
    return written


def _piece(trace: Trace, block: Block, index_Q: npt.NDArray[np.int32], weights: bool, scrub: bool) -> TokenPiece:
    layers = range(trace.model.num_layers)
    return TokenPiece(
        ids_LTK=np.stack([checked_ids(trace.model, block, layer) for layer in layers]),
        weights_LTK=np.stack([block.weights_TK(layer) for layer in layers]) if weights else None,
        request_T=index_Q[block.request_T],
        position_T=block.column_T("position"),
        phase_T=block.column_T("phase"),
        token_T=block.column_T(TOKEN) if block.shard.has_tokens and not scrub else None,
    )
