"""Splitting by request: the tokens of a request stay together, so that held-out figures are honest."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError, TraceError
from placement.traces.parts import Parts
from placement.traces.trace import Trace


def split_requests(trace: Trace, share: float, seed: int) -> tuple[Trace, Trace]:
    """(rest, part): `part` has about `share` of the requests that have tokens, at least one; seeded."""
    if not 0 < share < 1:
        raise OptionError(f"holdout={share} must be between 0 and 1, both excluded")
    chosen = choose_requests(trace, share, seed)
    return trace.select(_kept(trace) & ~chosen), trace.select(chosen)


def split_by_part(trace: Trace, parts: Parts, share: float, seed: int) -> tuple[Trace, Trace]:
    """The same with about that share of every part; of requests that are in none, all are kept.

    Entries with the same id stay together, on the side where the first of the parts that has them puts them.
    """
    if not 0 < share < 1:
        raise OptionError(f"holdout={share} must be between 0 and 1, both excluded")
    id_of = [request.id for request in trace.requests]
    kept: set[str] = set()
    drawn: set[str] = set()
    tokens_Q = trace.tokens_Q()
    for part in range(len(parts.names)):
        mine = dict.fromkeys(id_of[q] for q in np.flatnonzero((parts.part_Q == part) & (tokens_Q > 0)))
        free = [name for name in mine if name not in kept and name not in drawn]
        number = min(max(round(share * len(mine)), 1) - sum(name in drawn for name in mine), len(free) - 1)
        order = np.random.default_rng([seed, part]).permutation(len(free))[: max(number, 0)]
        drawn.update(free[q] for q in order.tolist())
        kept.update(name for name in free if name not in drawn)
    chosen = np.array([name in drawn for name in id_of], dtype=bool)
    return trace.select(_kept(trace) & ~chosen), trace.select(_kept(trace) & chosen)


def choose_requests(trace: Trace, share: float, seed: int) -> npt.NDArray[np.bool_]:
    """Mask of the requests that make the part, bool [Q]. Entries with the same id are one request and stay together."""
    if not 0 <= seed < 2**63:
        raise OptionError(f"seed={seed} must be from 0 to 2^63 - 1")
    present = np.flatnonzero(trace.tokens_Q() > 0)
    group_of: dict[str, int] = {}
    group_P = np.array([group_of.setdefault(trace.requests[q].id, len(group_of)) for q in present], dtype=np.int64)
    if len(group_of) < 2:
        raise TraceError(
            f"the trace has tokens of {len(group_of)} request; a split by request needs 2 or more; solve "
            f"with --holdout 0 to fit them all"
        )
    number = min(max(round(share * len(group_of)), 1), len(group_of) - 1)
    drawn = np.random.default_rng(seed).permutation(len(group_of))[:number]
    chosen = np.zeros(len(trace.requests), dtype=bool)
    chosen[present[np.isin(group_P, drawn)]] = True
    return chosen


def _kept(trace: Trace) -> npt.NDArray[np.bool_]:
    return np.ones(len(trace.requests), dtype=bool) if trace.selected_Q is None else trace.selected_Q
