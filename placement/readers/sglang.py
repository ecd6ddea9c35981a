"""Dumps of SGLang's expert distribution recorder (--expert-distribution-recorder-mode), files of `torch.save`.

per_token         records of passes with `topk_ids_of_layer` [layers, tokens, 8], -1 where there is none: a trace
per_pass          records of passes with `global_physical_count` [layers, slots], one file a rank: counts
stat, stat_approx `logical_count` [passes, layers, experts], a ring buffer whose unused rows are 0: counts; also as
                  [layers, experts] and as JSON, as SGLang itself takes it with --init-expert-location

Ids of records are physical; `last_physical_to_logical_map` [layers, slots] of the same file makes them logical. Layers
are all hidden ones. Read in the source of sglang 0.5.23, `srt/eplb/expert_distribution.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers.base import (
    BATCH_TOKENS,
    Batch,
    CountRecording,
    ReadOptions,
    Recording,
    files_of,
    head_of,
    model_name,
    reading,
)
from placement.readers.repeats import Repeats
from placement.readers.sglang_counts import JSON_SUFFIX, read_per_pass, read_stat
from placement.readers.sglang_file import COUNT, IDS, MAP, MEND, RECORDS, first_recorded, map_of, records_of
from placement.readers.sglang_passes import Found, Pass, passes_of
from placement.readers.token_ids import listed_ids
from placement.support.torch_file import StoredTensor, mentions
from placement.traces.format import RequestEntry

PATTERN = "*.pt"
PART = 1 << 20  # values read at once where order does not matter
ID_FAULT = "is it a fused shared expert? record again with --disable-shared-experts-fusion"


class SGLang:
    name = "sglang"
    title = "SGLang expert distribution recorder"

    def sniff(self, path: Path) -> str | None:
        if path.suffix == JSON_SUFFIX and f'"{COUNT}"'.encode() in head_of(path):
            return f"{path.name} is JSON with {COUNT}"
        files = files_of(path, PATTERN)
        if not files:
            return None
        if mentions(files[0], MAP, RECORDS):
            return f"{files[0].name} is a torch file with {RECORDS} and {MAP}"
        if mentions(files[0], COUNT):
            return f"{files[0].name} is a torch file with {COUNT}"
        return None

    def read(self, path: Path, options: ReadOptions) -> Recording | CountRecording:
        files = files_of(path, PATTERN)
        if not files:
            raise TraceError(f"{path} has no {PATTERN}; give the folder that the recorder wrote to")
        source, first = files[0], {COUNT: None}
        if source.suffix != JSON_SUFFIX:
            source, first = first_recorded(files)
        if COUNT in first:
            return read_stat(path, files, options)
        if MAP not in first or RECORDS not in first:
            raise TraceError(
                f"{source} has keys {', '.join(map(str, first)):.200}; {COUNT}, or {RECORDS} and {MAP}, are needed"
            )
        records = first[RECORDS]
        if not isinstance(records, list) or not isinstance(records[0], dict):
            raise TraceError(f"{source}: {RECORDS} must be a list of dicts; {MEND}")
        phy2log_LP = map_of(source, first)
        layer_ids = options.layer_ids or tuple(range(len(phy2log_LP)))
        redundant = phy2log_LP.shape[1] - int(phy2log_LP.max()) - 1
        notes = ["ids are mapped by the dump's last map: right only if EPLB did not rebalance while recording"]
        if IDS not in records[0]:
            return read_per_pass(path, files, phy2log_LP, options, notes[: bool(redundant)])
        notes = ["requests are put together from positions: the recorder has no ids", *notes[: bool(redundant)]]
        return Recording(
            model=model_name(path),
            layer_ids=layer_ids,
            num_experts=int(phy2log_LP.max()) + 1,
            num_hidden_layers=None if options.layer_ids else len(layer_ids),
            phy2log_LP=phy2log_LP,
            batches=lambda: _token_batches(files, phy2log_LP, notes),
            notes=notes,
            id_fault=ID_FAULT,
        )


def _token_batches(files: list[Path], phy2log_LP: npt.NDArray[np.int32], notes: list[str]) -> Iterator[Batch]:
    repeats, found = Repeats(len(files)), Found()
    for path, group in groupby(records_of(files, phy2log_LP, notes), key=itemgetter(0)):
        records = [(f"{path}: record {number}", record) for _, number, record in group]
        prefix = f"{path.stem}/" if len(files) > 1 else ""
        with reading(path, MEND), path.open("rb") as file:
            tensors = [_ids_of(where, record) for where, record in records]
            passes, found_here = passes_of(records, partial(_written, file))
            copy = any(passes)  # of another rank's file, as long as no pass is new
            for (where, record), ids, one in zip(records, tensors, passes, strict=True):
                if one is None or repeats.seen((record.get("forward_pass_id"), ids.shape), _parts(file, ids)):
                    continue
                copy = False
                yield from _batches(where, file, ids, one, prefix, _tokens_of(where, record, ids.shape[1]))
            if not copy:
                found.add(found_here)
    notes.extend(note for note in found.notes() if note not in notes)


def _batches(
    where: str,
    file: IO[bytes],
    ids: StoredTensor,
    one: Pass,
    prefix: str,
    token_T: npt.NDArray[np.int32] | None,
) -> Iterator[Batch]:
    """The tokens of a pass, in batches of at most BATCH_TOKENS."""
    num_tokens = ids.shape[1]
    names = np.array(one.numbers)
    local_T = np.repeat(np.arange(len(names), dtype=np.int32), one.lengths)
    with reading(where, MEND):
        for start in range(0, num_tokens, BATCH_TOKENS):
            stop = min(start + BATCH_TOKENS, num_tokens)
            first, last = int(local_T[start]), int(local_T[stop - 1]) + 1
            yield Batch(
                where=where if num_tokens <= BATCH_TOKENS else f"{where} from token {start}",
                ids_LTK=_rows(file, ids, start, stop),
                requests=tuple(RequestEntry(id=f"{prefix}{name}") for name in names[first:last].tolist()),
                request_T=local_T[start:stop] - first,
                position_T=one.position_T[start:stop],
                phase_T=one.phase_T[start:stop],
                token_T=None if token_T is None else token_T[start:stop],
            )


def _ids_of(where: str, record: dict[str, Any]) -> StoredTensor:
    ids = record.get(IDS)
    if not isinstance(ids, StoredTensor) or len(ids.shape) != 3 or ids.dtype != np.int32:
        raise TraceError(f"{where}: {IDS} must be int32 [layers, tokens, top-k]; {MEND}")
    return ids


def _tokens_of(where: str, record: dict[str, Any], count: int) -> npt.NDArray[np.int32] | None:
    """Ids of the tokens of a pass; None where the record has none. Raises TraceError."""
    token_T = listed_ids(record.get("input_ids"), "input_ids", where)
    if token_T is not None and len(token_T) != count:
        raise TraceError(f"{where}: input_ids has {len(token_T)} ids for {count} tokens; {MEND}")
    return token_T


def _written(file: IO[bytes], record: dict[str, Any]) -> bool:
    """Whether any row of a pass has ids."""
    return any((part >= 0).any() for part in _parts(file, record[IDS]))


def _parts(file: IO[bytes], ids: StoredTensor) -> Iterator[npt.NDArray[Any]]:
    total = math.prod(ids.shape)
    return (ids.part(file, start, min(PART, total - start)) for start in range(0, total, PART))


def _rows(file: IO[bytes], ids: StoredTensor, start: int, stop: int) -> npt.NDArray[np.int32]:
    num_layers, num_tokens, width = ids.shape
    ids_LTK = np.empty((num_layers, stop - start, width), dtype=np.int32)
    for layer in range(num_layers):
        values = ids.part(file, (layer * num_tokens + start) * width, (stop - start) * width)
        ids_LTK[layer] = values.reshape(stop - start, width)
    return ids_LTK
