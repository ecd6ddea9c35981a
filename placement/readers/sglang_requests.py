"""Which request a token of SGLang's recorder belongs to: dumps have positions, but no request ids.

A pass is a row of segments, one a request: of a prefill `extend_seq_lens` long, of a decode one token. The batch keeps
its order from pass to pass, so a decode token belongs to the next running request that stands at its position; running
requests that a decode pass has not are done. A prompt that is prefilled in chunks is the last of one pass and the first
of the next prefill. Every other prefill is a new request, wherever it begins: a cached prefix has no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(slots=True)
class RequestTracker:
    """Open requests as (number, next position, whether it decodes), in the order of the running batch."""

    open_requests: list[tuple[int, int, bool]] = field(default_factory=list)
    started: int = 0

    def follow(self, starts: list[int], lengths: list[int], decodes: list[bool]) -> list[int]:
        """Number of the request of every segment of the next pass."""
        numbers: list[int] = []
        running: list[tuple[int, int, bool]] = []
        prefilled: list[tuple[int, int, bool]] = []
        only_decodes = bool(decodes) and all(decodes)
        at = 0
        for segment, (start, length, decode) in enumerate(zip(starts, lengths, decodes, strict=True)):
            number = None
            if decode:
                ahead = at
                while ahead < len(self.open_requests) and self.open_requests[ahead][1] != start:
                    ahead += 1
                if ahead < len(self.open_requests):
                    number = self.open_requests[ahead][0]
                    running += [] if only_decodes else self.open_requests[at:ahead]
                    at = ahead + 1
            elif segment == 0 and start > 0 and self.open_requests and self.open_requests[-1][1:] == (start, False):
                number = self.open_requests.pop()[0]
            if number is None:
                number = self.started
                self.started += 1
            numbers.append(number)
            (running if decode else prefilled).append((number, start + length, decode))
        running += [] if only_decodes else self.open_requests[at:]
        self.open_requests = running + prefilled
        return numbers
