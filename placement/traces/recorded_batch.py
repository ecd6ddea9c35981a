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
                f"an attention_mask of shape {tuple(getattr(mask, 'shape', ()))} does not say which of {rows} x {length} "
                "tokens are padding; give one of a row a request, and generate with the default (dynamic) cache"
            )
        past = 0 if cache is None else int(cache.get_seq_length())
        return Step(rows=rows, length=length, past=past, cached=given.get("use_cache") is not False, ids=ids, mask=mask)


class Batch:
    """Rows that are fed together, forward after forward; row `r` is request `first + r`."""

    __slots__ = ("_ended_B", "_fed", "_first", "_ids", "_length_B")

    def __init__(self, step: Step, first: int) -> None:
        """Tokens in the cache were fed before recording began, or by a batch that this one was made from."""
        before = None if step.mask is None else step.mask[:, : -step.length]
        seen = np.full(step.rows, step.past) if before is None else before.bool().sum(1).cpu().numpy()
        self._length_B: npt.NDArray[np.int64] = seen.astype(np.int64)
        self._ended_B = np.zeros(step.rows, dtype=bool)
        self._first = first
        self._fed = step.past
        self._ids: Any = None

    def continued_by(self, step: Step) -> bool:
        """True if `step` feeds further tokens of these rows: behind its cache or, without one, all again and one more."""
        if len(self._length_B) != step.rows:
            return False
        return step.past == self._fed if step.past else self._fed_again(step)

    def _fed_again(self, step: Step) -> bool:
        if step.cached or self._ids is None or step.ids is None or step.length != self._fed + 1:
            return False
        return bool((step.ids[:, :-1] == self._ids).all())

    def take(self, step: Step, ends: frozenset[int]) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], int]:
        """Indices into the flattened tokens of those to record, their requests and positions [T], and the phase.

        A token of `ends` that is fed back means that its row has ended: neither it nor what follows is a token that an
        engine would run.
        """
        again = self._fed if not step.past and self._fed else 0
        phase = DECODE if self._fed and step.length - again == 1 else PREFILL
        if step.mask is None:
            kept_BS = np.ones((step.rows, step.length), dtype=bool)
        else:
            kept_BS = step.mask[:, -step.length :].bool().cpu().numpy().copy()
        kept_BS[:, :again] = False
        if phase == PREFILL:
            self._ended_B[:] = False
        elif step.ids is not None:
            self._ended_B |= np.isin(step.ids[:, -1].cpu().numpy(), list(ends))
            kept_BS[:, -1] &= ~self._ended_B
        position_BS = self._length_B[:, None] + np.cumsum(kept_BS, axis=1) - 1
        self._length_B += kept_BS.sum(axis=1)
        self._fed = step.past + step.length
        self._ids = None if step.cached else step.ids
        kept_T = np.flatnonzero(kept_BS)
        request_T = self._first + kept_T // step.length
        return kept_T, request_T.astype(np.int32), position_BS.ravel()[kept_T].astype(np.int32), phase
