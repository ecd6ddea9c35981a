"""Which requests are held out: those whose hash of seed and id is smallest.

Tokens of a request stay together, so that held-out figures are honest. Entries with the same id are one request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from placement.errors import OptionError, TraceError
from placement.support.hash64 import GOLDEN, mix
from placement.traces.parts import Parts
from placement.traces.trace import Trace


def split_requests(trace: Trace, share: float, seed: int, parts: Parts | None = None) -> tuple[Trace, Trace]:
    """Split a trace by request: (rest, part), where `part` has the requests that `held_out` draws."""
    chosen_Q = held_out(trace, share, seed, parts)
    kept_Q = np.ones(len(trace.requests), dtype=bool) if trace.selected_Q is None else trace.selected_Q
    return trace.select(kept_Q & ~chosen_Q), trace.select(chosen_Q)


def held_out(trace: Trace, share: float, seed: int, parts: Parts | None = None) -> npt.NDArray[np.bool_]:
    """Draw the requests to hold out.

    Args:
        share: of the requests that have tokens, between 0 and 1, both excluded; at least one is drawn, and one is not.
        seed: of the hash, 0 to 2^63 - 1.
        parts: draw the share of each part by itself. An id of several parts belongs to the first; requests of no part,
            and a part of one request, are not drawn.

    Returns:
        bool [Q], for each entry of `trace.requests`.

    Raises:
        OptionError: the share or the seed is out of range.
        TraceError: fewer than two requests have tokens.
    """
    present = np.flatnonzero(trace.tokens_Q() > 0)
    ids = [trace.requests[q].id for q in present]
    if len(set(ids)) < 2:
        raise TraceError(
            f"the trace has tokens of {len(set(ids))} request; a split by request needs 2 or more; solve "
            f"with --holdout 0 to fit them all"
        )
    chosen_Q = np.zeros(len(trace.requests), dtype=bool)
    chosen_Q[present] = draw(ids, share, seed, None if parts is None else parts.part_Q[present])
    return chosen_Q


def draw(
    ids: Sequence[str], share: float, seed: int, part_Q: npt.NDArray[np.integer] | None = None
) -> npt.NDArray[np.bool_]:
    """The rule of `held_out` for ids alone, bool [Q]; `part_Q` is the part of each, int [Q], -1 for none."""
    if not 0 < share < 1:
        raise OptionError(f"holdout={share} must be between 0 and 1, both excluded")
    if not 0 <= seed < 2**63:
        raise OptionError(f"seed={seed} must be from 0 to 2^63 - 1")
    names, first_N, name_Q = np.unique(np.asarray(ids, dtype=object), return_index=True, return_inverse=True)
    order_N = np.argsort(_words(request_keys(names.tolist(), seed)), kind="stable")
    part_N = np.zeros(len(names), dtype=np.int64) if part_Q is None else part_Q[first_N]
    drawn_N = np.zeros(len(names), dtype=bool)
    for part in range(int(part_N.max(initial=-1)) + 1):
        mine = order_N[part_N[order_N] == part]
        number = min(max(round(share * len(mine)), 1), len(mine) - 1)
        drawn_N[mine[: max(number, 0)]] = True
    return np.asarray(drawn_N[name_Q])


def below_share(key_Q: npt.NDArray[np.uint64], share: float) -> npt.NDArray[np.bool_]:
    """The same draw where not all requests are known yet: hashes below that share of all words, bool [Q].

    A request is then on the same side in whatever part of a trace it is counted. Beside `held_out` only requests whose
    hash is near the share differ.
    """
    return np.asarray(_words(key_Q) < np.uint64(int(share * 2**53) << 11))


def request_keys(ids: Sequence[str], seed: int) -> npt.NDArray[np.uint64]:
    """A uniform 64-bit key of every request, uint64 [Q]: the same wherever and in whatever order it is counted."""
    if not -(2**63) <= seed < 2**63:
        raise OptionError(f"seed={seed} must fit 64 bits")
    salt = seed.to_bytes(8, "little", signed=True)
    names = (name.encode(errors="surrogatepass") for name in ids)
    digests = b"".join(hashlib.blake2b(name, digest_size=8, salt=salt).digest() for name in names)
    return np.frombuffer(digests, dtype="<u8").astype(np.uint64)


def parts_of_keys(trace: Trace, parts: Parts, key_Q: npt.NDArray[np.uint64], seed: int) -> npt.NDArray[np.bool_]:
    """Which requests, known by their keys alone, are of which part, bool [Q, W]; keys of no part are in none."""
    all_Q = request_keys([request.id for request in trace.requests], seed)
    return np.stack([np.isin(key_Q, all_Q[parts.part_Q == w]) for w in range(len(parts.names))], axis=1)


def _words(key_Q: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The keys hashed once more, uint64 [Q]: the smallest keys are also those of the request profiles."""
    return mix(key_Q ^ GOLDEN)
