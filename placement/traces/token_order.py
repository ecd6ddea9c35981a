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

from placement.support.batches import batches
from placement.support.hash64 import mixed_order
from placement.traces.checked import checked_ids
from placement.traces.format import joined_ids
from placement.traces.trace import Block, Trace

MIXED_TOKENS = 1 << 20  # the most whose ids of one layer are in memory; a larger block counts alone


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBatch:
    """Blocks, and the order of their tokens; None is as they are stored.

    request_T  index of each token's request in the whole trace, int32, in that order
    """

    trace: Trace
    blocks: tuple[Block, ...]
    order_T: npt.NDArray[np.int64] | None
    request_T: npt.NDArray[np.int32]

    def ids_TK(self, layer: int) -> npt.NDArray[Any]:
        """Checked expert ids of one layer, as shards have them. Raises TraceError."""
        parts = [checked_ids(self.trace.model, block, layer) for block in self.blocks]
        if self.order_T is None and len(parts) == 1:
            return parts[0]
        ids_TK = joined_ids(parts)
        return ids_TK if self.order_T is None else np.asarray(ids_TK[self.order_T])


def token_batches(trace: Trace, *, mixed: bool) -> Iterator[TokenBatch]:
    """All kept tokens: block by block in order, or as many blocks at a time as MIXED_TOKENS allows, mixed."""
    for blocks in batches(trace.blocks(), lambda block: len(block.request_T), MIXED_TOKENS if mixed else 0):
        request_T = np.concatenate([block.request_T for block in blocks])
        order_T = mixed_order(len(request_T)) if mixed else None
        yield TokenBatch(
            trace=trace,
            blocks=blocks,
            order_T=order_T,
            request_T=request_T if order_T is None else request_T[order_T],
        )
