"""What all dumps of SGLang's recorder share: their documents, maps and records. See `sglang`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers.base import reading
from placement.support.torch_file import StoredTensor, open_document

MAP, RECORDS, COUNT, IDS, PHYSICAL = (
    "last_physical_to_logical_map",
    "records",
    "logical_count",
    "topk_ids_of_layer",
    "global_physical_count",
)
MOST_NAMED = 3  # files that a note names
MEND = "dump the record again with POST /dump_expert_distribution_record"
PLAIN = "give a file that torch.save wrote, of tensors, numbers, text, lists and dicts alone"


def document_of(path: Path) -> dict[str, Any]:
    """The dump with its tensors on disk. Raises TraceError."""
    with reading(path, PLAIN), path.open("rb") as file:
        document = open_document(file)
    if not isinstance(document, dict):
        raise TraceError(f"{path} holds a {type(document).__name__}; {COUNT}, or {RECORDS} and {MAP}, are needed")
    return document


def map_of(path: Path, document: dict[str, Any]) -> npt.NDArray[np.int32]:
    """Logical expert of each slot, int32 [L, P]. Raises TraceError."""
    found = document.get(MAP)
    if not isinstance(found, StoredTensor) or len(found.shape) != 2 or found.dtype.kind != "i" or 0 in found.shape:
        raise TraceError(f"{path}: {MAP} must be whole numbers [layers, slots]; {MEND}")
    with reading(path, MEND), path.open("rb") as file:
        phy2log_LP = found.read(file)
    slots = phy2log_LP.shape[1]
    for expert in (int(phy2log_LP.min()), int(phy2log_LP.max())):
        if not 0 <= expert < slots:
            raise TraceError(
                f"{path}: {MAP} has expert {expert}; 0 to {slots - 1} are possible in {slots} slots; {MEND}"
            )
    experts = int(phy2log_LP.max()) + 1
    for layer, row in enumerate(phy2log_LP):
        absent = np.setdiff1d(np.arange(experts), row)
        if len(absent):
            raise TraceError(f"{path}: {MAP} has no slot for expert {absent[0]} of {experts} in layer {layer}; {MEND}")
    return phy2log_LP.astype(np.int32)


def first_recorded(files: list[Path]) -> tuple[Path, dict[str, Any]]:
    """The first dump that was not made before a pass was recorded. Raises TraceError."""
    for path in files:
        document = document_of(path)
        if not _is_empty(document):
            return path, document
    raise TraceError(
        f"{files[0]} has no records{f', nor has any of {len(files)} dumps' if len(files) > 1 else ''}; POST "
        f"/start_expert_distribution_record, send requests, then dump"
    )


def _is_empty(document: dict[str, Any]) -> bool:
    return MAP in document and isinstance(document.get(RECORDS), list) and not document[RECORDS]


def records_of(
    files: list[Path], phy2log_LP: npt.NDArray[np.int32], notes: list[str]
) -> Iterator[tuple[Path, int, dict[str, Any]]]:
    """(file, number, record); the map of every file with records must be this. Raises TraceError.

    Dumps without records are left out: whatever their map, no id is of it. In the end, `notes` says which these were.
    """
    empty: list[str] = []
    for path in files:
        document = document_of(path)
        if _is_empty(document):
            empty.append(path.name)
            continue
        if not np.array_equal(map_of(path, document), phy2log_LP):
            raise TraceError(f"{path} has another {MAP} than those before; convert dumps of different maps apart")
        records = document.get(RECORDS)
        if not isinstance(records, list):
            raise TraceError(f"{path}: {RECORDS} must be a list; {MEND}")
        for number, record in enumerate(records):
            if not isinstance(record, dict):
                raise TraceError(f"{path}: record {number} is no dict; {MEND}")
            yield path, number, record
    if empty:
        more = f" and {len(empty) - MOST_NAMED} more" if len(empty) > MOST_NAMED else ""
        note = f"left out: {len(empty)} of {len(files)} dumps, without records ({', '.join(empty[:MOST_NAMED])}{more})"
        notes += [note] * (note not in notes)  # batches are read twice
