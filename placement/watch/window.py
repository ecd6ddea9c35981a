"""The newest tokens of a stream, as a sum of workloads."""

from __future__ import annotations

from collections import deque
from functools import reduce
from operator import add

from placement.errors import OptionError
from placement.workload import Workload

BUCKETS = 8  # each holds co-activations of all layers: few, so that memory stays bounded


class Window:
    """Holds the newest `size_tokens` tokens, to an eighth: what is small is added up, the oldest eighth falls out.

    size_tokens  tokens that it holds at least, once as many have come; a larger piece is kept whole
    """

    def __init__(self, size_tokens: int) -> None:
        if size_tokens < BUCKETS:
            raise OptionError(f"window_tokens={size_tokens} must be at least {BUCKETS}")
        self.size_tokens = size_tokens
        self._buckets: deque[Workload] = deque()

    @property
    def num_tokens(self) -> int:
        return sum(bucket.num_tokens for bucket in self._buckets)

    @property
    def full(self) -> bool:
        return self.num_tokens >= self.size_tokens

    @property
    def stride_tokens(self) -> int:
        """Tokens after which it is worth looking again: an eighth."""
        return self.size_tokens // BUCKETS

    def push(self, piece: Workload) -> None:
        """Take the newest tokens in. Raises InputError if they are of another model or counted otherwise."""
        newest = self._buckets[-1] if self._buckets else None
        if newest is not None and newest.num_tokens + piece.num_tokens <= self.stride_tokens:
            self._buckets[-1] = newest + piece
        else:
            if newest is not None:
                newest.check_adds(piece)
            self._buckets.append(piece)
        while self.num_tokens - self._buckets[0].num_tokens >= self.size_tokens:
            self._buckets.popleft()

    def workload(self) -> Workload:
        """All that it holds as one workload. Raises OptionError while it is empty."""
        if not self._buckets:
            raise OptionError("the window is empty; push a workload first")
        return reduce(add, self._buckets)
