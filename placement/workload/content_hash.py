"""Hashes of what was counted of a shard: they tell that a file was changed, not that it was forged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.traces import trace as traces
from placement.traces.trace import Span
from placement.workload import counting

COLUMNS = ("request", "position", "phase")
_WORD = 8


def hash_span(span: Span, num_layers: int) -> int:
    """A hash of all that is counted of the span, 64 bits: the sum of those of its blocks' columns and layers."""
    total = 0
    with span.shard.reader() as reader:
        for piece in span.cut(traces.CHUNK_TOKENS):
            rows = piece.start, piece.stop
            total += hash_columns([reader.column(name, *rows) for name in COLUMNS], piece.start)
            for layer in range(num_layers):
                total += hash_rows(reader.layer("expert_ids", layer, *rows), layer, piece.start)
    return total % 2**64


def hash_columns(columns: Sequence[npt.NDArray[Any]], start: int) -> int:
    """Of the rows from `start` on of COLUMNS."""
    return sum(hash_rows(column, -1 - number, start) for number, column in enumerate(columns))


def hash_rows(values: npt.NDArray[Any], part: int, start: int) -> int:
    """Of the rows from `start` on of a layer, or of a column (`part` < 0); those of blocks add up."""
    raw = values.reshape(-1).view(np.uint8)
    first = ((part + len(COLUMNS)) << 40) + start * (raw.size // max(len(values), 1)) // _WORD
    whole = raw.size - raw.size % _WORD
    total = int(counting.hash_words(raw[:whole].view(np.uint64), first))
    if whole < raw.size:
        tail = np.zeros(_WORD, dtype=np.uint8)
        tail[: raw.size - whole] = raw[whole:]
        total += int(counting.hash_words(tail.view(np.uint64), first + whole // _WORD))
    return total
