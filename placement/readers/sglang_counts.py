"""Dumps of SGLang's recorder without tokens: modes per_pass, stat and stat_approx. See `sglang`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from placement.errors import TraceError
from placement.readers.base import CountRecording, ReadOptions, reading, whole_number
from placement.readers.count_rows import CountRows
from placement.readers.sglang_file import COUNT, MEND, PHYSICAL, document_of, map_of, records_of
from placement.support.torch_file import StoredTensor


def read_per_pass(path: Path, files: list[Path], layer_ids: tuple[int, ...], notes: list[str]) -> CountRecording:
    """Counts of each pass, added over ranks, by the logical experts of the slots."""
    phy2log_LP = map_of(files[0], document_of(files[0]))
    num_layers, num_slots = phy2log_LP.shape
    shape = (num_layers, int(phy2log_LP.max()) + 1)
    index_LP = phy2log_LP + np.arange(num_layers)[:, None] * shape[1]
    rows = CountRows(shape)
    for file_path, number, record in records_of(files, phy2log_LP):
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
        model=path.stem,
        layer_ids=layer_ids,
        count_QLE=rows.array(),
        notes=[rows.note("forward passes"), "ranks that see the same tokens are counted each", *notes],
    )


def read_stat(path: Path, files: list[Path], options: ReadOptions) -> CountRecording:
    """Counts of each pass in the ring buffer, by logical experts; its unused rows are left out."""
    rows: CountRows | None = None
    unused = 0
    for file_path in files:
        counts = document_of(file_path).get(COUNT)
        if not isinstance(counts, StoredTensor) or len(counts.shape) != 3 or counts.dtype.kind != "i":
            raise TraceError(f"{file_path}: {COUNT} must be whole numbers [passes, layers, experts]; {MEND}")
        num_passes, num_layers, num_experts = counts.shape
        if rows is None:
            rows = CountRows((num_layers, num_experts))
        if rows.shape != (num_layers, num_experts):
            raise TraceError(
                f"{file_path} counts {num_layers} layers of {num_experts} experts, {files[0]} {rows.shape[0]} of "
                f"{rows.shape[1]}; convert them apart"
            )
        size = num_layers * num_experts
        with reading(file_path, MEND), file_path.open("rb") as file:
            for number in range(num_passes):
                count_LE = counts.part(file, number * size, size).reshape(num_layers, num_experts)
                least = count_LE.min(initial=0)
                if least < 0:
                    raise TraceError(f"{file_path}: pass {number} counts {least}; 0 and more are allowed; {MEND}")
                if count_LE.any():
                    rows.add(count_LE.astype(np.int64))
                else:
                    unused += 1
    if rows is None or not rows.count:
        raise TraceError(f"{path} counts nothing: all rows are 0; POST /start_expert_distribution_record first; {MEND}")
    notes = [rows.note("forward passes"), "a count may be of several ranks: shares are right, totals may not be"]
    if unused:
        notes.insert(0, f"{unused:,} unused rows of the ring buffer left out")
    return CountRecording(
        model=path.stem,
        layer_ids=options.layer_ids or tuple(range(rows.shape[0])),
        count_QLE=rows.array(),
        notes=notes,
    )
