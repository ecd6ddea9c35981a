"""The tokens that a pass looks at together: a block of the trace, or many blocks side by side, mixed.

A trace stores one request after another, often one data set after another. A server's batches mix requests. Where the
order matters (`min-nodes-balanced`), tokens of many blocks are therefore visited in a pseudo-random order, always the
same one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from placement.support.hash64 import mixed_order
from placement.traces.checked import checked_ids
from placement.traces.trace import Block, Trace

MIXED_TOKENS = 1 << 20  # at most, unless one block has more: their ids in one layer are held in memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Blocks, and the order of their tokens; None is as they are stored.

    request_T  index of each token's request in the whole trace, int32, in that order
    """

    trace: Trace
    blocks: tuple[Block, ...]
    order_T: npt.NDArray[np.int64] | None
    request_T: npt.NDArray[np.int32]

    def ids_TK(self, layer: int) -> npt.NDArray[Any]:
        """Checked expert ids of one layer, uint8 or uint16. Raises TraceError."""
        parts = [checked_ids(self.trace.model, block, layer) for block in self.blocks]
        if self.order_T is None and len(parts) == 1:
            return parts[0]
        ids_TK = np.concatenate(parts)
        return ids_TK if self.order_T is None else np.asarray(ids_TK[self.order_T])


def gather(trace: Trace, *, mixed: bool) -> Iterator[Gathered]:
    """All kept tokens: block by block in order, or as many blocks at a time as MIXED_TOKENS allows, mixed."""
    waiting: list[Block] = []
    num_tokens = 0
    for block in trace.blocks():
        if waiting and (not mixed or num_tokens + len(block.request_T) > MIXED_TOKENS):
            yield _gathered(trace, waiting, mixed=mixed)
            waiting, num_tokens = [], 0
        waiting.append(block)
        num_tokens += len(block.request_T)
    if waiting:
        yield _gathered(trace, waiting, mixed=mixed)


def _gathered(trace: Trace, blocks: list[Block], *, mixed: bool) -> Gathered:
    request_T = np.concatenate([block.request_T for block in blocks])
    order_T = mixed_order(len(request_T)) if mixed else None
    return Gathered(
        trace=trace,
        blocks=tuple(blocks),
        order_T=order_T,
        request_T=request_T if order_T is None else request_T[order_T],
    )
