"""Passes of a per_token dump of SGLang: the requests and phases of their tokens.

`forward_mode` is a number of ForwardMode. The numbers to 5 are the same in the versions read (sglang 0.4 to 0.5.23), 6
and 7 extended drafts; from 8 on, and with 7 in newer versions, they were given anew. With speculative decoding, passes
verify drafts (see `sglang_drafts`): those that were rejected were sent to their experts like any token, and have phase
DRAFT. The passes of the draft model are recorded too, mostly without ids; its layers are not those of the dump, so all
of these are left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.readers.base import reading, whole_number
from placement.readers.sglang_drafts import Drafts, spans
from placement.readers.sglang_file import MEND
from placement.readers.sglang_requests import RequestTracker
from placement.traces.format import DECODE, DRAFT, PREFILL

DECODES, MIXED, IDLE, VERIFY = 2, 3, 4, 5  # of ForwardMode
OF_DRAFT_MODEL = (6, 7)

Positions = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """Request and rows of every segment of a pass, and the columns of its rows."""

    numbers: list[int]
    lengths: list[int]
    position_T: Positions
    phase_T: npt.NDArray[np.uint8]


@dataclass(slots=True)
class Found:
    """What was found beside tokens, in numbers of passes and rows."""

    verifying: int = 0
    rejected: int = 0
    shared: int = 0
    untold: int = 0
    of_draft_model: int = 0
    others: dict[int, int] = field(default_factory=dict)

    def add(self, other: Found) -> None:
        """Take in what was found in another file."""
        for name in ("verifying", "rejected", "shared", "untold", "of_draft_model"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for mode, count in other.others.items():
            self.others[mode] = self.others.get(mode, 0) + count

    def notes(self) -> list[str]:
        """One line for each that there is."""
        lines = [
            (
                self.verifying,
                f"passes of forward_mode {VERIFY} (TARGET_VERIFY) hold {self.rejected:,} drafts that were rejected: "
                f"experts served them, so they count as load, with phase {DRAFT}; --without-drafts leaves them out",
            ),
            (
                self.untold,
                "drafts of the last pass of their requests are called decode: nothing says whether they were accepted",
            ),
            (
                self.shared,
                "accepted tokens had several drafts (a tree): the first is taken for the one that was accepted",
            ),
            (
                self.of_draft_model,
                "rows of the draft model left out (forward_mode 6 and 7, DRAFT_EXTEND, and passes without ids): its "
                "layers are not those of the dump",
            ),
            *(
                (count, f"passes of forward_mode {mode}, which differs by version, were read as prompts")
                for mode, count in self.others.items()
            ),
        ]
        return [f"{count:,} {line}" for count, line in lines if count]


def passes_of(
    records: list[tuple[str, dict[str, Any]]], written: Callable[[dict[str, Any]], bool]
) -> tuple[list[Pass | None], Found]:
    """The pass of each record of a file, given with its place, or None where it has no tokens. Raises TraceError.

    written: whether a record has any ids, which is asked only where drafts are verified.
    """
    tracker, drafts, found = RequestTracker(), Drafts(), Found()
    modes = [whole_number(record.get("forward_mode"), "forward_mode", where) for where, record in records]
    speculative = VERIFY in modes
    passes: list[Pass | None] = []
    for mode, (where, record) in zip(modes, records, strict=True):
        position_T = _positions(record, where)
        hidden = speculative and mode not in (VERIFY, IDLE) and len(position_T) and not written(record)
        if mode in OF_DRAFT_MODEL or hidden:
            found.of_draft_model += len(position_T)
            passes.append(None)
            continue
        if mode == VERIFY and record.get("extend_seq_lens") is None:
            lengths = drafts.cut(position_T, tracker)
        else:
            lengths = _lengths(record, position_T, mode, where)
        starts, reach = spans(position_T, lengths) if mode == VERIFY else (_starts(position_T, lengths), lengths)
        phase_S = _phases(mode, starts, lengths)
        numbers = tracker.follow(starts, reach, (phase_S == DECODE).tolist(), drafts=mode == VERIFY)
        if mode == IDLE or not len(position_T):
            passes.append(None)
            continue
        phase_T = np.repeat(phase_S, lengths)
        for number, start in zip(numbers, starts, strict=True) if drafts.waiting else ():
            if number in drafts.waiting:
                drafts.settle(number, start)
        if mode == VERIFY:
            found.verifying += 1
            drafts.take(numbers, lengths, position_T, phase_T)
        elif mode > VERIFY:
            found.others[mode] = found.others.get(mode, 0) + 1
        passes.append(Pass(numbers=numbers, lengths=lengths, position_T=position_T, phase_T=phase_T))
    found.untold, found.shared = drafts.untold(), drafts.shared
    found.rejected = sum(int(np.count_nonzero(one.phase_T == DRAFT)) for one in passes if one is not None)
    return passes, found


def _lengths(record: dict[str, Any], position_T: Positions, mode: int, where: str) -> list[int]:
    """Rows of every request in a pass."""
    lengths = record.get("extend_seq_lens")
    if mode == DECODES or (lengths is None and (mode == IDLE or not len(position_T))):
        return [1] * len(position_T)
    if lengths is None:
        raise TraceError(
            f"{where} is a pass of prompts without extend_seq_lens, which tells its requests apart (forward_mode "
            f"{mode}); {MEND}"
        )
    with reading(where, MEND):
        length_S = np.array(lengths, dtype=np.int64)
    if length_S.ndim != 1 or length_S.min(initial=0) < 0 or length_S.sum() != len(position_T):
        raise TraceError(f"{where}: extend_seq_lens does not add up to {len(position_T)} tokens; {MEND}")
    return [length for length in length_S.tolist() if length]


def _starts(position_T: Positions, lengths: list[int]) -> list[int]:
    """First position of every segment."""
    first_S = position_T if len(lengths) == len(position_T) else position_T[np.cumsum([0, *lengths[:-1]])]
    starts: list[int] = first_S.tolist()
    return starts


def _phases(mode: int, starts: list[int], lengths: list[int]) -> npt.NDArray[np.uint8]:
    """Phase of every segment: in a mixed pass, what continues a request by one token is decode."""
    if mode in (DECODES, VERIFY):
        return np.full(len(starts), DECODE, dtype=np.uint8)
    if mode == MIXED:
        single = (np.array(lengths) == 1) & (np.array(starts) > 0)
        return np.where(single, DECODE, PREFILL).astype(np.uint8)
    return np.full(len(starts), PREFILL, dtype=np.uint8)


def _positions(record: dict[str, Any], where: str) -> Positions:
    count = record["topk_ids_of_layer"].shape[1]
    with reading(where, MEND):
        values = np.array(record.get("positions"), dtype=np.int64)
    if values.shape != (count,) or not 0 <= values.min(initial=0) <= values.max(initial=0) < 2**31:
        raise TraceError(f"{where}: positions must be {count} whole numbers from 0, one a token; {MEND}")
    return values.astype(np.int32)
