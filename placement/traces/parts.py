"""Parts of a trace between which traffic may shift: its domains, categories, folders, or windows in time."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from placement.core.choices import PARTINGS
from placement.errors import OptionError
from placement.traces.trace import Trace

log = logging.getLogger("placement")

FEWEST_TOKENS, FEWEST_REQUESTS = 256, 4
OTHER, UNNAMED = "other", "no {key}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Which requests make which part.

    by      one of PARTINGS, with its number
    names   of the W parts
    part_Q  int32 [Q], part of every request of the trace; -1: of none
    left_out  names of the parts that were too small
    """

    by: str
    names: tuple[str, ...]
    part_Q: npt.NDArray[np.int32]
    left_out: tuple[str, ...] = ()

    def of(self, trace: Trace, part: int) -> Trace:
        """The requests of `trace`, a selection of the same requests, that belong to the part."""
        mine = self.part_Q == part
        return trace.select(mine if trace.selected_Q is None else mine & trace.selected_Q)


def parts_of(trace: Trace, by: str, *, option: str = "parts", others: Sequence[str] = PARTINGS) -> Parts:
    """Part the kept requests of a trace.

    domain, category  by that key of the requests; those without it are a part of their own
    traces            by the folder that they lie in
    windows:N         in the order of the trace, cut into N windows of about as many tokens each

    Domains and categories with less than FEWEST_TOKENS tokens or FEWEST_REQUESTS requests, too few to be judged by,
    make one part `other`; of any parting, a part that is still too small is left out, which is logged. The names are
    in order of the alphabet (`other` last), of the folders, or of time. Raises OptionError where less than two parts
    are left, which names the option that asked for them and the others that it knows.
    """
    tokens_Q = trace.tokens_Q()
    names, part_Q = _all_parts(trace, by, tokens_Q, option, others)
    part_Q = np.where(tokens_Q > 0, part_Q, -1)
    small = [w for w in range(len(names)) if _too_small(trace, tokens_Q, part_Q == w)]
    left_out = tuple(names[w] for w in small)
    if by in ("domain", "category") and len(small) > 1:
        other = names.index(OTHER) if OTHER in names else len(names)
        names = (*names, OTHER)[: max(len(names), other + 1)]
        part_Q = np.where(np.isin(part_Q, small), other, part_Q)
        small = [other] if _too_small(trace, tokens_Q, part_Q == other) else []
        if not small:
            log.info("parts by %s: %s are small and make one part, %s", by, ", ".join(left_out), OTHER)
            left_out = ()
    if left_out:
        log.info("parts by %s: %s left out, with too few tokens or requests", by, ", ".join(left_out))
    kept = [w for w in range(len(names)) if w not in small and (part_Q == w).any()]
    if len(kept) < 2:
        found = f"only {names[kept[0]]!r}" if kept else "none"
        raise OptionError(
            f"{option}={by!r} needs two or more parts of at least {FEWEST_TOKENS} tokens and {FEWEST_REQUESTS} "
            f"requests; {found} was found; give more requests, or another of {', '.join(others)}"
        )
    number = np.full(len(names) + 1, -1, dtype=np.int32)  # the last entry: requests of no part
    number[kept] = np.arange(len(kept))
    return Parts(by=by, names=tuple(names[w] for w in kept), part_Q=number[part_Q], left_out=left_out)


def _all_parts(
    trace: Trace, by: str, tokens_Q: npt.NDArray[np.int64], option: str, others: Sequence[str]
) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Parts of whatever size, and the part of every request."""
    if by in ("domain", "category"):
        values = [getattr(request, by) for request in trace.requests]
        if all(value is None for value, tokens in zip(values, tokens_Q, strict=True) if tokens):
            raise OptionError(
                f"{option}={by!r}: no request of the trace has a {by}; try --{option} {others[-1].replace('N', '4')}"
            )
        labels = [UNNAMED.format(key=by) if value is None else value for value in values]
        names = sorted(set(labels), key=_by_name)
        return tuple(names), np.array([names.index(label) for label in labels], dtype=np.int64)
    if by == "traces":
        folder_Q = np.zeros(len(trace.requests), dtype=np.int64)
        folders = {span.offset: span.shard.path.parent for span in trace.spans}
        for number, offset in enumerate(sorted(folders)):
            folder_Q[offset:] = number
        paths = [folders[offset] for offset in sorted(folders)]
        short = [path.name for path in paths]
        return tuple(short if len(set(short)) == len(short) else map(str, paths)), folder_Q
    number = _num_windows(by)
    middle_Q = np.cumsum(tokens_Q) - tokens_Q / 2
    window_Q = np.minimum(middle_Q * number // max(tokens_Q.sum(), 1), number - 1).astype(np.int64)
    return tuple(f"window {w + 1}" for w in range(number)), window_Q


def check_parting(by: str) -> None:
    """Raise OptionError unless `by` is one of PARTINGS; whether a trace has such parts, `parts_of` finds."""
    if by not in PARTINGS[:-1]:
        _num_windows(by)


def _num_windows(by: str) -> int:
    windows = re.fullmatch(r"windows:(\d{1,4})", by)
    if windows is None or int(windows[1]) < 2:
        raise OptionError(f"parts={by!r} is unknown; choose one of {', '.join(PARTINGS)} (N from 2 to 9999)")
    return int(windows[1])


def _by_name(name: str) -> tuple[bool, list[str | int]]:
    """Numbers in names by their value, `other` last."""
    pieces = re.split(r"([0-9]{1,9})", name)
    return name == OTHER, [int(piece) if number % 2 else piece for number, piece in enumerate(pieces)]


def _too_small(trace: Trace, tokens_Q: npt.NDArray[np.int64], mine_Q: npt.NDArray[np.bool_]) -> bool:
    requests = {trace.requests[q].id for q in np.flatnonzero(mine_Q)}
    return int(tokens_Q[mine_Q].sum()) < FEWEST_TOKENS or len(requests) < FEWEST_REQUESTS
