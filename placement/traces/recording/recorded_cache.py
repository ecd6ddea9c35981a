"""Caches that were seen: which batch each belongs to, and whether someone changed it between two forwards."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from typing import Any

from placement.core.huggingface import library
from placement.errors import TraceError
from placement.traces.recording.recorded_batch import ForwardBatch
from placement.traces.recording.recorded_step import NAME_IT, REPORT, ForwardStep

DEPTH = 6  # tensors lie this deep in a cache: cache, kinds, layers, layer, states, tensor
PLAIN = (type(None), bool, int, float, str, type)


class Caches:
    """Says which batch a forward goes on with; no cache is kept alive."""

    __slots__ = ("_last", "_seen")

    def __init__(self) -> None:
        self._seen: dict[int, tuple[weakref.ref[Any], ForwardBatch, list[weakref.ref[Any]]]] = {}
        self._last: ForwardBatch | None = None

    def keep(self, cache: Any, batch: ForwardBatch) -> None:
        """After a forward of `batch`. Raises TraceError for a cache that does not show its tensors."""
        self._last = batch
        self._seen = {key: one for key, one in self._seen.items() if one[0]() is not None}
        if cache is None:
            return
        held = [weakref.ref(one) for one in _tensors(cache)]
        if not held:
            raise TraceError(
                f"{type(cache).__name__} of {library()} does not show its tensors, so that rows that change places in "
                f"it would not be seen; use the default cache, or {REPORT}"
            )
        self._seen[id(cache)] = (weakref.ref(cache), batch, held)

    def forget(self) -> None:
        self._seen, self._last = {}, None

    def batch_of(self, step: ForwardStep) -> ForwardBatch | None:
        """The batch that `step` feeds more tokens of; None if it begins one. Raises TraceError where either may be."""
        last = self._last
        if not step.past:
            return last if last is not None and last.fed_again(step) else None
        known, batch, held = self._seen.get(id(step.cache), (None, None, []))
        if known is None or known() is not step.cache or batch is None:
            if last is not None and (last.rows, last.fed) == (step.rows, step.past):
                raise TraceError(
                    f"a cache that the recorder has not seen holds as many rows and tokens, {step.rows} x {step.past}, "
                    f"as were fed last: a copy, or that of other requests; {NAME_IT}, or go on with the cache itself"
                )
            return None  # made before recording began, or a copy of such a one
        now = list(_tensors(step.cache))
        same = len(now) == len(held) and all(ref() is one for ref, one in zip(held, now, strict=True))
        if (batch.rows, batch.fed) != (step.rows, step.past) or not same:
            raise TraceError(
                f"the cache of {batch.rows} x {batch.fed} tokens was changed between two forwards and now has "
                f"{step.rows} x {step.past}: beam search lets rows change places, assisted generation takes tokens "
                f"back; generate without these, or {NAME_IT}"
            )
        if batch is last:
            return batch
        if batch.named:
            raise TraceError(
                f"a cache of requests that have names goes on after other requests were fed, {step.rows} x {step.past} "
                f"tokens; {NAME_IT}"
            )
        return None


def _tensors(value: Any, depth: int = DEPTH) -> Iterator[Any]:
    """All tensors that a cache holds, whatever its attributes are called."""
    if isinstance(value, PLAIN):
        return
    if hasattr(value, "data_ptr"):
        yield value
    elif depth and not hasattr(value, "named_parameters"):
        if isinstance(value, Mapping):
            inside = list(value.values())
        elif isinstance(value, (list, tuple)):
            inside = list(value)
        else:
            inside = list(getattr(value, "__dict__", {}).values())
        for one in inside:
            yield from _tensors(one, depth - 1)
