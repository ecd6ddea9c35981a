"""The newest tokens of a stream, as a sum of workloads."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from operator import add

from placement.errors import OptionError
from placement.workload.workload import Workload

BUCKETS = 8  # few, so that memory stays bounded: each holds the co-activations of all layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The newest `size_tokens` tokens, to an eighth: what is small is added up, the oldest eighth falls out.

    Attributes:
        size_tokens: Tokens that it holds at least, once as many have come; a larger piece is kept whole.
        buckets: What it holds, oldest first.
    """

    size_tokens: int
    buckets: tuple[Workload, ...] = ()

    def __post_init__(self) -> None:
        if self.size_tokens < BUCKETS:
            raise OptionError(f"window_tokens={self.size_tokens} must be at least {BUCKETS}")

    @property
    def num_tokens(self) -> int:
        """Tokens that the window holds."""
        return sum(bucket.num_tokens for bucket in self.buckets)

    @property
    def stride_tokens(self) -> int:
        """Tokens after which it is worth looking again: an eighth."""
        return self.size_tokens // BUCKETS

    def push(self, piece: Workload) -> Window:
        """With the newest tokens.

        Raises:
            InputError: The tokens are of another model, or counted otherwise.
        """
        buckets = [*self.buckets]
        if buckets and buckets[-1].num_tokens + piece.num_tokens <= self.stride_tokens:
            buckets[-1] += piece
        else:
            if buckets:
                buckets[-1].check_adds(piece)
            buckets.append(piece)
        total = sum(bucket.num_tokens for bucket in buckets)
        while total - buckets[0].num_tokens >= self.size_tokens:
            total -= buckets.pop(0).num_tokens
        return replace(self, buckets=tuple(buckets))

    def without_oldest(self, number: int) -> Window:
        """Without so many of the oldest buckets."""
        return replace(self, buckets=self.buckets[number:])

    def workload(self) -> Workload:
        """All that it holds as one workload.

        Raises:
            OptionError: The window is empty.
        """
        if not self.buckets:
            raise OptionError("the window is empty; push a workload first")
        return reduce(add, self.buckets)
