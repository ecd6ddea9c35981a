"""Splitting by request: the tokens of a request stay together, so that held-out figures are honest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError, TraceError
from placement.traces.trace import Trace


def split_requests(trace: Trace, share: float, seed: int) -> tuple[Trace, Trace]:
    """(rest, part): `part` has about `share` of the requests that have tokens, at least one; seeded."""
    if not 0 < share < 1:
        raise OptionError(f"share={share} must be between 0 and 1, both excluded")
    chosen = choose_requests(trace, share, seed)
    return trace.select(_kept(trace) & ~chosen), trace.select(chosen)


def choose_requests(trace: Trace, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mask of the requests that make the part, bool [Q]."""
    present = np.flatnonzero(trace.tokens_Q() > 0)
    if len(present) < 2:
        raise TraceError(
            f"the trace has tokens of {len(present)} request, and a split by request needs 2 or more; use --holdout 0"
        )
    number = min(max(round(share * len(present)), 1), len(present) - 1)
    chosen = np.zeros(len(trace.requests), dtype=bool)
    chosen[np.random.default_rng(seed).permutation(present)[:number]] = True
    return chosen


def _kept(trace: Trace) -> npt.NDArray[np.bool_]:
    return np.ones(len(trace.requests), dtype=bool) if trace.selected_Q is None else trace.selected_Q
