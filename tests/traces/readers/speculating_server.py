"""A server of SGLang with drafts, as its recorder would dump it, and the rows that are its tokens."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from placement.readers.convert import Conversion
from placement.traces.format import DECODE, DRAFT, PREFILL
from placement.traces.trace import Trace

Array = npt.NDArray[Any]

LAYERS, EXPERTS, TOP_K = 6, 8, 2  # rows that are alike in six layers, as padding is, do not come by chance

EXTEND, DECODES, VERIFY, DRAFT_EXTEND = 1, 2, 5, 6


def sets(rng: np.random.Generator, tokens: int) -> Array:
    return np.argsort(rng.random((LAYERS, tokens, EXPERTS)), axis=2)[:, :, :TOP_K]


def record(mode: int, positions: list[int], ids_LTK: Array | None, lengths: list[int] | None = None) -> dict[str, Any]:
    """A pass as the recorder has it, of the draft model where `ids_LTK` is None."""
    padded = np.full((LAYERS, len(positions), 8), -1, dtype=np.int32)
    if ids_LTK is not None:
        padded[:, :, :TOP_K] = ids_LTK
    names = {"forward_mode": mode, "positions": positions, "extend_seq_lens": lengths}
    return {"forward_pass_id": 0, "topk_ids_of_layer": torch.tensor(padded), **names}


def dump(path: Path, records: list[dict[str, Any]]) -> Path:
    slots = torch.arange(EXPERTS)[None].repeat(LAYERS, 1)
    numbered = [one | {"forward_pass_id": number} for number, one in enumerate(records)]
    torch.save({"records": numbered, "last_physical_to_logical_map": slots}, path)
    return path


@dataclass
class Server:
    """Runs requests with drafts, and knows what became of each row: (request, position, phase, sets)."""

    rng: np.random.Generator
    width: int
    tree: bool = False
    records: list[dict[str, Any]] = field(default_factory=list)
    rows: list[list[Any]] = field(default_factory=list)
    at: dict[int, int] = field(default_factory=dict)  # position of each running request
    last: dict[int, list[list[Any]]] = field(default_factory=dict)
    started: int = 0

    def _row(self, request: int, position: int, phase: int, ids_LK: Array) -> list[Any]:
        row = [str(request), position, phase, ids_LK.tolist()]
        self.rows.append(row)
        return row

    def prefill(self, *lengths: int) -> None:
        positions = [position for length in lengths for position in range(length)]
        ids = sets(self.rng, len(positions))
        self.records.append(record(EXTEND, positions, ids, list(lengths)))
        self.records.append(record(EXTEND, positions, None, list(lengths)))  # the draft model reads the prompt too
        row = iter(np.moveaxis(ids, 1, 0))
        for length in lengths:
            for position in range(length):
                self._row(self.started, position, PREFILL, next(row))
            self.at[self.started] = length
            self.started += 1

    def verify(self, accepted: dict[int, int]) -> None:
        """One pass of the running requests; each goes on by so many positions of which the first is no draft."""
        positions: list[int] = []
        for start in self.at.values():
            depth = [0, *range(1, self.width)]
            if self.tree:  # pairs of siblings: 0 1 1 2 2 ...
                depth = [0, *(1 + step // 2 for step in range(self.width - 1))]
            positions += [start + one for one in depth]
        ids = sets(self.rng, len(positions))
        self.records.append(record(VERIFY, positions, ids))
        self.records.append(record(DRAFT_EXTEND, positions, None, [self.width] * len(self.at)))
        for number, (request, start) in enumerate(list(self.at.items())):
            self._tell(request, start)
            mine = range(number * self.width, (number + 1) * self.width)
            first = {positions[row]: row for row in reversed(mine)}
            phases = [DECODE if first[positions[row]] == row else DRAFT for row in mine]
            self.last[request] = [
                self._row(request, positions[row], phase, ids[:, row]) for row, phase in zip(mine, phases, strict=True)
            ]
            self.at[request] = start + accepted[request]

    def _tell(self, request: int, start: int) -> None:
        for row in self.last.pop(request, ()):
            row[2] = DRAFT if row[1] >= start else row[2]

    def decode(self) -> None:
        """A pass without drafts, as large batches have."""
        ids = sets(self.rng, len(self.at))
        self.records.append(record(DECODES, list(self.at.values()), ids))
        for number, (request, start) in enumerate(list(self.at.items())):
            self._tell(request, start)
            self._row(request, start, DECODE, ids[:, number])
            self.at[request] = start + 1


def rows_of(trace: Trace) -> list[list[Any]]:
    found = []
    for block in trace.blocks():
        ids_TLK = np.stack([block.ids_TK(layer) for layer in range(trace.model.num_layers)], axis=1)
        columns = (block.request_T, block.column_T("position"), block.column_T("phase"), ids_TLK)
        for request, position, phase, ids in zip(*(column.tolist() for column in columns), strict=True):
            found.append([trace.requests[request].id, position, phase, ids])
    return found


def told(done: Conversion) -> str:
    return " | ".join(done.notes)
