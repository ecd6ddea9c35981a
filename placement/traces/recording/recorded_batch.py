"""Which request and position each token of a forward has, and which tokens are none: padding, and rows that ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError
from placement.traces.recording.recorded_step import NAME_IT, ForwardStep

PREFILL, DECODE = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """Tokens of one forward: which of them to record (bool, all), request and position of those, and the phase."""

    kept_T: npt.NDArray[np.bool_]
    request_T: npt.NDArray[np.int64]
    position_T: npt.NDArray[np.int64]
    phase: int


class ForwardBatch:
    """Rows that are fed together, forward after forward; row `r` is request `first + r`."""

    __slots__ = ("_all_B", "_ended_B", "_ids", "_length_B", "_request_B", "fed", "named", "rows")

    def __init__(self, step: ForwardStep, first: int, *, named: bool) -> None:
        """Tokens in the cache were fed before recording began, or by a batch that this one was made from."""
        self.rows, self.fed, self.named = step.rows, step.past, named
        before = None if step.mask is None else step.mask[:, : -step.length]
        seen = np.full(step.rows, step.past) if before is None else before.bool().sum(1).cpu().numpy()
        self._length_B: npt.NDArray[np.int64] = seen.astype(np.int64)
        self._ended_B = np.zeros(step.rows, dtype=bool)
        self._all_B = np.ones(step.rows, dtype=bool)
        self._request_B = np.arange(first, first + step.rows)
        self._ids: Any = None

    def fed_again(self, step: ForwardStep) -> bool:
        """True if `step`, which has no cache, feeds all tokens of these rows again and one more.

        Raises TraceError if it does so with rows that changed places.
        """
        if step.cache is not None or self._ids is None or step.ids is None:
            return False
        if (step.rows, step.length) != (self.rows, self.fed + 1):
            return False
        before = step.ids[:, :-1]
        if bool((before == self._ids).all()):
            return True
        known = set(map(tuple, self._ids.tolist()))
        if all(tuple(row) in known for row in before.tolist()):
            raise TraceError(
                f"{step.rows} rows of {self.fed} tokens are fed again with one more, and rows changed places, as in "
                f"beam search: which token is of which request cannot be told; generate without it, or {NAME_IT}"
            )
        return False

    def take(self, step: ForwardStep, ends: frozenset[int]) -> Fed:
        """Account for the tokens of `step`.

        A token of `ends` that is fed back means that its row has ended: neither it nor what follows is a token that an
        engine would run.
        """
        again = self.fed if not step.past else 0
        phase = DECODE if self.fed and step.length - again == 1 else PREFILL
        self.fed = step.past + step.length
        self._ids = None if step.past or step.ids is None else step.ids.clone()
        if phase == PREFILL:
            self._ended_B[:] = False
        elif ends and step.ids is not None:
            self._ended_B |= [token in ends for token in step.ids[:, -1].tolist()]
        if step.length == 1 and not self._ended_B.any() and (step.mask is None or 0 not in step.mask[:, -1].tolist()):
            position_B = self._length_B
            self._length_B = position_B + 1
            return Fed(kept_T=self._all_B, request_T=self._request_B, position_T=position_B, phase=phase)
        kept_BS = step.kept_BS()
        kept_BS[:, :again] = False
        kept_BS[self._ended_B] = False
        position_BS = self._length_B[:, None] + np.cumsum(kept_BS, axis=1) - 1
        request_BS = np.broadcast_to(self._request_B[:, None], kept_BS.shape)
        self._length_B = self._length_B + kept_BS.sum(axis=1)
        return Fed(kept_T=kept_BS.ravel(), request_T=request_BS[kept_BS], position_T=position_BS[kept_BS], phase=phase)
