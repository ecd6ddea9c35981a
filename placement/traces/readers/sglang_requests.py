"""Which request a token of SGLang's recorder belongs to: dumps have positions, but no request ids.

A pass is a row of segments, one a request: of a prefill `extend_seq_lens` long, of a decode one token. A segment that
starts at the position where an open request stands continues it; the batch keeps its order from pass to pass, so
requests are matched from the front. A decode pass has all running requests: those it has not are done.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestTracker:
    """Open requests as (number, next position), in the order of the running batch."""

    open_requests: list[tuple[int, int]] = field(default_factory=list)
    started: int = 0

    def follow(self, starts: list[int], lengths: list[int], *, decode: bool) -> list[int]:
        """Number of the request of every segment of the next pass."""
        numbers: list[int] = []
        matched: list[tuple[int, int]] = []
        rest: list[tuple[int, int]] = []
        at = 0
        for start, length in zip(starts, lengths, strict=True):
            ahead = at
            while ahead < len(self.open_requests) and self.open_requests[ahead][1] != start:
                ahead += 1
            if start > 0 and ahead < len(self.open_requests):
                number = self.open_requests[ahead][0]
                rest += self.open_requests[at:ahead]
                at = ahead + 1
            else:
                number = self.started
                self.started += 1
            numbers.append(number)
            matched.append((number, start + length))
        rest += self.open_requests[at:]
        self.open_requests = matched if decode else rest + matched
        return numbers
