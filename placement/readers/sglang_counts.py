"""Dumps of SGLang's recorder without tokens: modes per_pass, stat and stat_approx. See `sglang`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers.base import CountRecording, ReadOptions, model_name, reading, whole_number
from placement.readers.count_rows import CountRows
from placement.readers.sglang_file import COUNT, MEND, PHYSICAL, document_of, records_of
from placement.support.text_files import parse_json
from placement.support.torch_file import StoredTensor

JSON_SUFFIX = ".json"
MOST = 2**53  # a float counts so far
MOST_ROUNDED = 0.01  # of a layer's total may be lost or won where counts are rounded


def read_per_pass(
    path: Path, files: list[Path], phy2log_LP: npt.NDArray[np.int32], options: ReadOptions, notes: list[str]
) -> CountRecording:
    """Counts of each pass, added over ranks, by the logical experts of the slots."""
    num_layers, num_slots = phy2log_LP.shape
    shape = (num_layers, int(phy2log_LP.max()) + 1)
    index_LP = phy2log_LP + np.arange(num_layers)[:, None] * shape[1]
    rows = CountRows(shape)
    for file_path, number, record in records_of(files, phy2log_LP, notes):
        where = f"{file_path}: record {number}"
        counts = record.get(PHYSICAL)
        if not isinstance(counts, StoredTensor) or counts.shape != (num_layers, num_slots) or counts.dtype.kind != "i":
            raise TraceError(f"{where}: {PHYSICAL} must be whole numbers [{num_layers}, {num_slots}]; {MEND}")
        with reading(where, MEND), file_path.open("rb") as file:
            physical_LP = counts.read(file)
        if physical_LP.min() < 0:
            raise TraceError(f"{where}: {PHYSICAL} has {physical_LP.min()}; 0 and more are allowed; {MEND}")
        logical_LE = np.zeros(shape[0] * shape[1], dtype=np.int64)
        np.add.at(logical_LE, index_LP.reshape(-1), physical_LP.reshape(-1))
        key = whole_number(record.get("forward_pass_id"), "forward_pass_id", where)
        rows.add(logical_LE.reshape(shape), key=key)
    return CountRecording(
        model=model_name(path),
        layer_ids=options.layer_ids or tuple(range(num_layers)),
        num_hidden_layers=None if options.layer_ids else num_layers,
        count_QLE=rows.array(),
        notes=[rows.note("forward passes"), "ranks that see the same tokens are counted each", *notes],
    )


def read_stat(path: Path, files: list[Path], options: ReadOptions) -> CountRecording:
    """Counts by logical experts: of each pass in the ring buffer, whose unused rows are left out, or one row of all.

    SGLang takes the same key with --init-expert-location: [layers, experts] or [passes, layers, experts], whole numbers
    or not, as tensor or as lists.
    """
    rows: CountRows | None = None
    unused, rounded = 0, 0
    for file_path in files:
        for number, given_LE in enumerate(_passes(file_path)):
            rows = rows or CountRows(given_LE.shape)
            if rows.shape != given_LE.shape:
                raise TraceError(
                    f"{file_path} counts {given_LE.shape[0]} layers of {given_LE.shape[1]} experts, {files[0]} "
                    f"{rows.shape[0]} of {rows.shape[1]}; convert them apart"
                )
            count_LE = _whole(given_LE, f"{file_path}: pass {number}")
            rounded += int(np.count_nonzero(count_LE != given_LE))
            if count_LE.any():
                rows.add(count_LE)
            else:
                unused += 1
    if rows is None or not rows.count:
        raise TraceError(f"{path} counts nothing: all rows are 0; POST /start_expert_distribution_record first; {MEND}")
    one = "one row of counts: there are no requests or passes to hold out"
    notes = [
        one if rows.count == 1 else rows.note("forward passes"),
        "a count may be of several ranks: shares are right, totals may not be",
    ]
    if unused:
        notes.insert(0, f"{unused:,} unused rows of the ring buffer left out")
    if rounded:
        notes.append(f"{rounded:,} counts are not whole and were rounded, as means over passes are")
    return CountRecording(
        model=model_name(path),
        layer_ids=options.layer_ids or tuple(range(rows.shape[0])),
        num_hidden_layers=None if options.layer_ids else rows.shape[0],
        count_QLE=rows.array(),
        notes=notes,
    )


def _passes(path: Path) -> Iterator[npt.NDArray[Any]]:
    """The counts [L, E] of each pass, whole numbers or not; those without passes are of one. Raises TraceError."""
    if path.suffix == JSON_SUFFIX:
        with reading(path, MEND):
            document = parse_json(path.read_bytes())
    else:
        document = document_of(path)
    counts: Any = document.get(COUNT) if isinstance(document, dict) else None
    if isinstance(counts, list):
        with reading(path, MEND):
            counts = np.array(counts)
    shape = counts.shape if isinstance(counts, StoredTensor | np.ndarray) else ()
    if len(shape) not in (2, 3) or 0 in shape or counts.dtype.kind not in "iuf":
        raise TraceError(f"{path}: {COUNT} must be numbers [layers, experts] or [passes, layers, experts]; {MEND}")
    size = shape[-2] * shape[-1]
    if isinstance(counts, np.ndarray):
        yield from counts.reshape(-1, *shape[-2:])
        return
    with reading(path, MEND), path.open("rb") as file:
        for start in range(0, math.prod(shape), size):
            yield counts.part(file, start, size).reshape(shape[-2:])


def _whole(count_LE: npt.NDArray[Any], where: str) -> npt.NDArray[np.int64]:
    """Counts as int64 [L, E]: means are rounded, shares refused. Raises TraceError."""
    least, most = count_LE.min(), count_LE.max()
    if not 0 <= least <= most < MOST:
        raise TraceError(f"{where} counts {most if least >= 0 else least}; 0 to {MOST} are allowed; {MEND}")
    whole_LE: npt.NDArray[np.int64] = np.rint(count_LE).astype(np.int64)
    total_L, whole_L = count_LE.sum(axis=1, dtype=np.float64), whole_LE.sum(axis=1)
    lost = np.flatnonzero(np.abs(whole_L - total_L) > MOST_ROUNDED * total_L)
    if len(lost):
        layer = int(lost[0])
        raise TraceError(
            f"{where}: the counts of layer {layer} add up to {total_L[layer]:g}, rounded to whole numbers to "
            f"{whole_L[layer]}: these are shares, not counts; multiply them by the tokens that were counted"
        )
    return whole_LE
