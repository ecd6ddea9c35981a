"""Cutting requests in two: what is known of a request when its home is chosen, and the rest of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError
from placement.traces.trace import Cut, Trace

PREFILL = "prefill"
FIRST_QUARTER = "0.25"


def cut_requests(trace: Trace, at: str) -> tuple[Trace, Trace]:
    """(first tokens, rest) of every request; nothing is copied.

    at  `prefill`: the first part is the prefill, the rest the decode; or a share between 0 and 1: the first part is
        that share of the positions that the request has, rounded up
    """
    if trace.cut is not None:
        raise OptionError("the requests of this trace are cut already; cut the whole trace")
    if at == PREFILL:
        return tuple(replace(trace, cut=Cut(position_Q=None, rest=rest)) for rest in (False, True))  # type: ignore[return-value]
    share = _share(at)
    first_Q, last_Q = _ends(trace)
    length_Q = np.maximum(last_Q - first_Q + 1, 0)
    position_Q = np.where(length_Q > 0, first_Q, 0) + np.ceil(share * length_Q - 1e-9).astype(np.int64)
    return tuple(replace(trace, cut=Cut(position_Q=position_Q, rest=rest)) for rest in (False, True))  # type: ignore[return-value]


def first_tokens(trace: Trace, number: int) -> Trace:
    """So many tokens of every request, from its first recorded position on; nothing is copied."""
    first_Q, _ = _ends(trace)
    return replace(
        trace, cut=Cut(position_Q=np.where(first_Q < np.iinfo(np.int64).max, first_Q, 0) + number, rest=False)
    )


def check_cut(at: str) -> None:
    """Raise OptionError unless `at` is `prefill` or a share."""
    if at != PREFILL:
        _share(at)


def _ends(trace: Trace) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """First and last position of every request, int64 [Q]; the largest number and -1 where it has no tokens."""
    first_Q = np.full(len(trace.requests), np.iinfo(np.int64).max)
    last_Q = np.full(len(trace.requests), -1, dtype=np.int64)
    for block in trace.blocks():
        position_T = block.column_T("position").astype(np.int64)
        np.minimum.at(first_Q, block.request_T, position_T)
        np.maximum.at(last_Q, block.request_T, position_T)
    return first_Q, last_Q


def _share(at: str) -> float:
    try:
        share = float(at)
    except ValueError:
        share = np.nan
    if not 0 < share < 1:
        raise OptionError(
            f"homes from {at!r} is unknown; give `{PREFILL}` or a share between 0 and 1, as {FIRST_QUARTER}"
        )
    return share
