"""Which request and position each token of a forward has, and which tokens are none: padding, and rows that ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.errors import TraceError

PREFILL, DECODE = 0, 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What one forward was given.

    rows, length  shape of its tokens
    past          tokens a row that are in the cache already, padding included
    cached        False where the caller said that no cache is kept
    ids, mask     tensors [rows, length] and [rows, past + length], or None
    """

    rows: int
    length: int
    past: int
    cached: bool
    ids: Any
    mask: Any

    @staticmethod
    def of(given: dict[str, Any]) -> Step:
        """From the named arguments of a decoder. Raises TraceError."""
        ids, cache, mask = given.get("input_ids"), given.get("past_key_values"), given.get("attention_mask")
        fed = given.get("inputs_embeds") if ids is None else ids
        if fed is None:
            raise TraceError("a forward without input_ids or inputs_embeds cannot be recorded")
        rows, length = int(fed.shape[0]), int(fed.shape[1])
        if mask is not None and (getattr(mask, "ndim", 0) != 2 or mask.shape[0] != rows or mask.shape[1] < length):
            raise TraceError(
                f"an attention_mask of shape {tuple(getattr(mask, 'shape', ()))} does not say which of {rows} x "
                f"{length} tokens are padding; give one of a row a request, and use the default (dynamic) cache"
            )
        past = 0 if cache is None else int(cache.get_seq_length())
        return Step(rows=rows, length=length, past=past, cached=given.get("use_cache") is not False, ids=ids, mask=mask)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fed:
    """Tokens of one forward: which of them to record (bool, all), request and position of those, and the phase."""

    kept_T: npt.NDArray[np.bool_]
    request_T: npt.NDArray[np.int64]
    position_T: npt.NDArray[np.int64]
    phase: int


class Batch:
    """Rows that are fed together, forward after forward; row `r` is request `first + r`."""

    __slots__ = ("_all_B", "_ended_B", "_fed", "_ids", "_length_B", "_request_B")

    def __init__(self, step: Step, first: int) -> None:
        """Tokens in the cache were fed before recording began, or by a batch that this one was made from."""
        before = None if step.mask is None else step.mask[:, : -step.length]
        seen = np.full(step.rows, step.past) if before is None else before.bool().sum(1).cpu().numpy()
        self._length_B: npt.NDArray[np.int64] = seen.astype(np.int64)
        self._ended_B = np.zeros(step.rows, dtype=bool)
        self._all_B = np.ones(step.rows, dtype=bool)
        self._request_B = np.arange(first, first + step.rows)
        self._fed = step.past
        self._ids: Any = None

    def continued_by(self, step: Step) -> bool:
        """True if `step` feeds more tokens of these rows: behind its cache or, without one, all again and one more."""
        if len(self._length_B) != step.rows:
            return False
        return step.past == self._fed if step.past else self._fed_again(step)

    def _fed_again(self, step: Step) -> bool:
        if step.cached or self._ids is None or step.ids is None or step.length != self._fed + 1:
            return False
        return bool((step.ids[:, :-1] == self._ids).all())

    def take(self, step: Step, ends: frozenset[int]) -> Fed:
        """Account for the tokens of `step`.

        A token of `ends` that is fed back means that its row has ended: neither it nor what follows is a token that an
        engine would run.
        """
        again = self._fed if not step.past and self._fed else 0
        phase = DECODE if self._fed and step.length - again == 1 else PREFILL
        self._fed = step.past + step.length
        self._ids = None if step.cached else step.ids
        if phase == PREFILL:
            self._ended_B[:] = False
        elif ends and step.ids is not None:
            self._ended_B |= [token in ends for token in step.ids[:, -1].tolist()]
        if step.length == 1 and not self._ended_B.any() and (step.mask is None or 0 not in step.mask[:, -1].tolist()):
            position_B = self._length_B
            self._length_B = position_B + 1
            return Fed(kept_T=self._all_B, request_T=self._request_B, position_T=position_B, phase=phase)
        kept_BS = np.ones((step.rows, step.length), dtype=bool)
        if step.mask is not None:
            kept_BS &= step.mask[:, -step.length :].cpu().numpy() != 0
        kept_BS[:, :again] = False
        kept_BS[self._ended_B] = False
        position_BS = self._length_B[:, None] + np.cumsum(kept_BS, axis=1) - 1
        request_BS = np.broadcast_to(self._request_B[:, None], kept_BS.shape)
        self._length_B = self._length_B + kept_BS.sum(axis=1)
        return Fed(kept_T=kept_BS.ravel(), request_T=request_BS[kept_BS], position_T=position_BS[kept_BS], phase=phase)
