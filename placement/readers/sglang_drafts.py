"""Passes of SGLang that verify drafts: which rows are of one request, and which drafts were rejected.

Such a pass has, of each request, the token that was sampled last and its drafts, without `extend_seq_lens`: as many
rows of each, at positions in a chain or in a tree, where rows share positions. The next pass of a request begins behind
the last draft that was accepted: rows from there on were rejected, and of rows that share a position all but one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from placement.readers.sglang_requests import RequestTracker
from placement.traces.format import DECODE, DRAFT

Positions = npt.NDArray[np.int32]
Phases = npt.NDArray[np.uint8]


@dataclass(slots=True)
class Drafts:
    """Drafts of one file, pass by pass.

    width    rows of a request in the pass before
    waiting  positions and phases of the rows of which the request's next pass will tell
    shared   accepted positions at which there were several drafts
    """

    width: int = 0
    waiting: dict[int, tuple[Positions, Phases]] = field(default_factory=dict)
    shared: int = 0

    def cut(self, position_T: Positions, tracker: RequestTracker) -> list[int]:
        """Rows of every request in a pass.

        The cut is taken that begins the fewest requests, then that of the pass before, then that which ends the fewest.
        """
        chosen: list[int] = []
        best = (len(position_T) + 1, True, 0)
        for lengths in _cuts(position_T, self.width):
            new, ended = tracker.strangers(*spans(position_T, lengths))
            score = (new, set(lengths) != {self.width}, ended)
            if score < best:
                chosen, best = lengths, score
            if best == (0, False, 0):
                break
        self.width = chosen[0] if chosen else self.width
        return chosen

    def take(self, numbers: list[int], lengths: list[int], position_T: Positions, phase_T: Phases) -> None:
        """Rows of a pass that verifies: of those at one position, the first may be accepted. Changes `phase_T`."""
        end = 0
        for number, length in zip(numbers, lengths, strict=True):
            mine = slice(end, end + length)
            end += length
            self.waiting[number] = position_T[mine], phase_T[mine]
            if position_T[end - 1] - position_T[mine.start] != length - 1 or (np.diff(position_T[mine]) != 1).any():
                first = np.unique(position_T[mine], return_index=True)[1]
                phase_T[mine] = DRAFT
                phase_T[mine][first] = DECODE

    def settle(self, number: int, start: int) -> None:
        """The request goes on at `start`: what was verified from there on was rejected."""
        position_T, phase_T = self.waiting.pop(number)
        rejected_T = position_T >= start
        phase_T[rejected_T] = DRAFT
        self.shared += len(np.unique(position_T[~rejected_T & (phase_T == DRAFT)]))

    def untold(self) -> int:
        """Drafts called decode of which no later pass has told whether they were accepted."""
        return sum(int(np.count_nonzero(phase_T == DECODE)) - 1 for _, phase_T in self.waiting.values())


def spans(position_T: Positions, lengths: list[int]) -> tuple[list[int], list[int]]:
    """(first position, positions spanned) of every segment of a pass."""
    if not lengths:
        return [], []
    first_S = np.cumsum([0, *lengths[:-1]])
    start_S = position_T[first_S]
    return start_S.tolist(), (np.maximum.reduceat(position_T, first_S) + 1 - start_S).tolist()


def _cuts(position_T: Positions, likely: int) -> Iterator[list[int]]:
    """Ways to cut a pass: `likely` rows a request, or as many as can be and ever fewer, or wherever a chain ends."""
    rows = len(position_T)
    for width in (likely, *range(rows, 0, -1)):
        if width and rows % width == 0 and _is_tree(position_T.reshape(-1, width)):
            yield [width] * (rows // width)
    ends = np.flatnonzero(np.diff(position_T) != 1) + 1
    yield np.diff(np.unique([0, *ends.tolist(), rows])).tolist()


def _is_tree(position_RW: npt.NDArray[np.int32]) -> bool:
    """Whether each row of positions is one that the others follow, without a gap."""
    sorted_RW = np.sort(position_RW, axis=1)
    step_RW = np.diff(sorted_RW, axis=1)
    one_root = bool((sorted_RW[:, 0] == position_RW[:, 0]).all() and (step_RW[:, :1] == 1).all())
    return one_root and bool(((step_RW == 0) | (step_RW == 1)).all())
