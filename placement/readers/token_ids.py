"""Ids of the tokens that a recording has beside their sets: content, which is kept with the rows and told of."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers.base import Batch
from placement.readers.responses import MISCOUNTED, Remarks
from placement.traces.format import PREFILL
from placement.traces.prompts import TokenLists

UNKNOWN = -1
MEND = "log the ids as the server gave them, or leave them out"

Ids = npt.NDArray[np.int32]


def known_ids(found: npt.NDArray[np.integer]) -> Ids:
    """Ids of tokens, int32; UNKNOWN for what is none: placeholders of images, and of tokens not yet drawn."""
    wide = found.astype(np.int64)
    return np.where((wide >= 0) & (wide < 2**31), wide, UNKNOWN).astype(np.int32)


def listed_ids(value: object, what: str, where: str) -> Ids | None:
    """The ids of a list; None where there is none. Raises TraceError on what is no list of whole numbers."""
    if value is None:
        return None
    try:
        found = np.array(value)
    except (ValueError, OverflowError):  # lists of different lengths
        found = np.empty((0, 0))
    if found.ndim != 1 or (found.size and found.dtype.kind not in "iu"):
        raise TraceError(f"{where}: {what} is no list of whole numbers; {MEND}")
    return known_ids(found.astype(np.int64))


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """Ids of the tokens of a request, whose prompt has `prompt` tokens; None: they are not known.

    prompt_P  int32 [P]
    answer_A  int32 [A]
    """

    prompt: int
    prompt_P: Ids | None
    answer_A: Ids | None

    @staticmethod
    def of(
        where: str,
        prompt_ids: object,
        answer_ids: object,
        *,
        prompt: int | None,
        answer: int | None,
        remarks: Remarks,
    ) -> TokenIds | None:
        """From what a response says. Lists that are not as long as it says are left out and remarked.

        Raises TraceError.
        """
        told = []
        for value, what, count in (
            (prompt_ids, "ids of the prompt", prompt),
            (answer_ids, "ids of the answer", answer),
        ):
            ids = listed_ids(value, what, where)
            if ids is not None and count is not None and len(ids) != count:
                remarks.add(MISCOUNTED, where)
                ids = None
            told.append(ids)
        if prompt is None and told[0] is not None:
            prompt = len(told[0])
        if prompt is None or (told[0] is None and told[1] is None):
            return None
        return TokenIds(prompt=prompt, prompt_P=told[0], answer_A=told[1])

    def at(self, position_T: npt.NDArray[np.int32]) -> Ids:
        """The ids at these positions, int32 [T]; UNKNOWN where they are not known."""
        token_T = np.full(len(position_T), UNKNOWN, dtype=np.int32)
        for ids, begin in ((self.prompt_P, 0), (self.answer_A, self.prompt)):
            if ids is not None:
                mine_T = (position_T >= begin) & (position_T < begin + len(ids))
                token_T[mine_T] = ids[position_T[mine_T] - begin]
        return token_T


@dataclass(slots=True)
class KeptIds:
    """What became of the ids of a recording: how many rows have theirs, and prompts of which rows are lacking.

    prompts  by the id of the request; None once every token of the prompt has a row
    """

    rows: int = 0
    prompts: dict[str, Ids | None] = field(default_factory=dict)
    routed: dict[str, int] = field(default_factory=dict)

    def take(self, batch: Batch, rows_R: npt.NDArray[np.int64]) -> Ids | None:
        """The ids of the rows of a batch that are kept, int32 [R]; None where the batch says none."""
        if batch.prompt_P is not None:
            self.prompts.setdefault(batch.requests[0].id, batch.prompt_P[batch.prompt_P >= 0])
        if batch.token_T is None:
            return None
        token_R = batch.token_T[rows_R]
        self.rows += int(np.count_nonzero(token_R >= 0))
        name = batch.requests[0].id
        prompt_P = self.prompts.get(name)
        if prompt_P is not None:
            routed = np.count_nonzero((token_R >= 0) & (batch.phase_T[rows_R] == PREFILL))
            self.routed[name] = self.routed.get(name, 0) + int(routed)
            if self.routed[name] >= len(prompt_P):
                self.prompts[name] = None
        return token_R

    def left(self, names: list[str]) -> TokenLists | None:
        """Prompts of which rows are lacking, for the requests of these ids; None where there are none."""
        found = [self.prompts.get(name) for name in names]
        if all(one is None for one in found):
            return None
        lists = [np.empty(0, np.int32) if one is None else one for one in found]
        return TokenLists.of(np.concatenate(lists), np.array([len(one) for one in lists]))

    def notes(self, prompts: TokenLists | None) -> list[str]:
        """One line where ids were kept."""
        if not self.rows and prompts is None:
            return []
        more = "" if prompts is None else f", and {np.count_nonzero(prompts.length_Q):,} prompts that lack rows"
        return [
            f"ids of {self.rows:,} tokens kept{more}: they are content; placement traces scrub writes the trace without"
        ]
