"""The newest tokens as a trace: what a window, which holds counts, does not know."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np

from placement.traces.trace import Span, Trace


class NewestTraces:
    """Traces as they come, joined to one; the oldest are let go.

    Args:
        scratch: Folders of traces below it are removed when they are let go.
    """

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        self._pieces: list[Trace] = []

    def push(self, piece: Trace) -> None:
        """Take in the newest tokens."""
        self._pieces.append(piece)

    def keep(self, tokens: int) -> None:
        """Let go of the oldest, as long as so many tokens stay."""
        left = sum(piece.num_tokens_stored for piece in self._pieces)
        while len(self._pieces) > 1 and left - self._pieces[0].num_tokens_stored >= tokens:
            left -= self._pieces[0].num_tokens_stored
            gone = self._folders(self._pieces.pop(0))
            for folder in gone - set().union(*map(self._folders, self._pieces)):
                shutil.rmtree(folder, ignore_errors=True)

    def trace(self) -> Trace | None:
        """All of them as one; None: nothing came yet. A request in several pieces has several entries with its id."""
        if not self._pieces:
            return None
        begins = np.cumsum([0, *(len(piece.requests) for piece in self._pieces)]).tolist()
        spans: list[Span] = []
        for piece, begin in zip(self._pieces, begins, strict=False):
            spans += [replace(span, offset=span.offset + begin) for span in piece.spans]
        requests = tuple(entry for piece in self._pieces for entry in piece.requests)
        return replace(self._pieces[0], requests=requests, spans=tuple(spans))

    def _folders(self, piece: Trace) -> set[Path]:
        """Its folders below the scratch folder."""
        paths = {Path(str(span.shard.path)).parent for span in piece.spans}
        return {path for path in paths if self.scratch in path.parents}
