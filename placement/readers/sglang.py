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
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers.base import (
    BATCH_TOKENS,
    DECODE,
    PREFILL,
    Batch,
    CountRecording,
    ReadOptions,
    Recording,
    files_of,
    head_of,
    model_name,
    reading,
    whole_number,
)
from placement.readers.repeats import Repeats
from placement.readers.sglang_counts import JSON_SUFFIX, read_per_pass, read_stat
from placement.readers.sglang_file import COUNT, IDS, MAP, MEND, RECORDS, first_recorded, map_of, records_of
from placement.readers.sglang_requests import RequestTracker
from placement.support.torch_file import StoredTensor, mentions
from placement.traces.format import RequestEntry

PATTERN = "*.pt"
MODE_EXTEND, MODE_DECODE, MODE_MIXED, MODE_IDLE = 1, 2, 3, 4  # of ForwardMode
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
    trackers: dict[Path, RequestTracker] = {}
    repeats = Repeats(len(files))
    for path, number, record in records_of(files, phy2log_LP, notes):
        where = f"{path}: record {number}"
        ids = record.get(IDS)
        if not isinstance(ids, StoredTensor) or len(ids.shape) != 3 or ids.dtype != np.int32:
            raise TraceError(f"{where}: {IDS} must be int32 [layers, tokens, top-k]; {MEND}")
        num_tokens = ids.shape[1]
        mode = whole_number(record.get("forward_mode"), "forward_mode", where)
        position_T = _column(record, "positions", num_tokens, where)
        tracker = trackers.setdefault(path, RequestTracker())
        starts, lengths = _segments(record, position_T, mode, where)
        phase_S = _phases(mode, starts, lengths)
        numbers = tracker.follow(starts, lengths, (phase_S == DECODE).tolist())
        if mode == MODE_IDLE or not num_tokens:
            continue
        prefix = f"{path.stem}/" if len(files) > 1 else ""
        names = np.array(numbers)
        local_T = np.repeat(np.arange(len(names), dtype=np.int32), lengths)
        phase_T = np.repeat(phase_S, lengths)
        with reading(where, MEND), path.open("rb") as file:
            if repeats.seen((record.get("forward_pass_id"), ids.shape), _parts(file, ids)):
                continue
            for start in range(0, num_tokens, BATCH_TOKENS):
                stop = min(start + BATCH_TOKENS, num_tokens)
                first, last = int(local_T[start]), int(local_T[stop - 1]) + 1
                yield Batch(
                    where=where if num_tokens <= BATCH_TOKENS else f"{where} from token {start}",
                    ids_LTK=_rows(file, ids, start, stop),
                    requests=tuple(RequestEntry(id=f"{prefix}{name}") for name in names[first:last].tolist()),
                    request_T=local_T[start:stop] - first,
                    position_T=position_T[start:stop],
                    phase_T=phase_T[start:stop],
                )


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


def _segments(
    record: dict[str, Any], position_T: npt.NDArray[np.int32], mode: int, where: str
) -> tuple[list[int], list[int]]:
    """First position and length of every request's tokens in the pass."""
    lengths = record.get("extend_seq_lens")
    if lengths is None and mode in (MODE_EXTEND, MODE_MIXED) and len(position_T):
        raise TraceError(
            f"{where} is a pass of prompts without extend_seq_lens, which tells its requests apart; {MEND}"
        )
    if mode == MODE_DECODE or lengths is None:
        return position_T.tolist(), [1] * len(position_T)
    with reading(where, MEND):
        length_S = np.array(lengths, dtype=np.int64)
    if length_S.ndim != 1 or length_S.min(initial=0) < 0 or length_S.sum() != len(position_T):
        raise TraceError(f"{where}: extend_seq_lens does not add up to {len(position_T)} tokens; {MEND}")
    length_S = length_S[length_S > 0]
    return position_T[np.cumsum(length_S) - length_S].tolist(), length_S.tolist()


def _phases(mode: int, starts: list[int], lengths: list[int]) -> npt.NDArray[np.uint8]:
    """Phase of every segment: in a mixed pass, what continues a request by one token is decode."""
    if mode == MODE_DECODE:
        return np.full(len(starts), DECODE, dtype=np.uint8)
    if mode == MODE_MIXED:
        single = (np.array(lengths) == 1) & (np.array(starts) > 0)
        return np.where(single, DECODE, PREFILL).astype(np.uint8)
    return np.full(len(starts), PREFILL, dtype=np.uint8)


def _column(record: dict[str, Any], name: str, count: int, where: str) -> npt.NDArray[np.int32]:
    with reading(where, MEND):
        values = np.array(record.get(name), dtype=np.int64)
    if values.shape != (count,) or not 0 <= values.min(initial=0) <= values.max(initial=0) < 2**31:
        raise TraceError(f"{where}: {name} must be {count} whole numbers from 0, one a token; {MEND}")
    return values.astype(np.int32)
