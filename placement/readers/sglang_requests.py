"""Which request a token of SGLang's recorder belongs to: dumps have positions, but no request ids.

A pass is a row of segments, one a request: of a prefill `extend_seq_lens` long, of a decode one token, of a pass that
verifies drafts the token that was sampled last and its drafts. The batch keeps its order from pass to pass, so a decode
token belongs to the next running request that may stand at its position; running requests that such a pass has not are
done. After drafts a request stands behind the last that was accepted: at any position up to the end of its drafts. A
prompt that is prefilled in chunks is the last of one pass and the first of the next prefill. Every other prefill is a
new request, wherever it begins: a cached prefix has no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

Open = tuple[int, int, int, bool]  # number, lowest and highest position that may come next, whether it decodes


@dataclass(slots=True)
class RequestTracker:
    """Requests that may go on, in the order of the running batch, and how many there were."""

    open_requests: list[Open] = field(default_factory=list)
    started: int = 0

    def follow(self, starts: list[int], lengths: list[int], decodes: list[bool], *, drafts: bool = False) -> list[int]:
        """Number of the request of every segment of the next pass; drafts: all but the first position of each are."""
        numbers: list[int] = []
        running: list[Open] = []
        prefilled: list[Open] = []
        only_decodes = bool(decodes) and all(decodes)
        opened = self.open_requests
        at = 0
        for segment, (start, length, decode) in enumerate(zip(starts, lengths, decodes, strict=True)):
            number = None
            if decode:
                ahead = at
                while ahead < len(opened) and not opened[ahead][1] <= start <= opened[ahead][2]:
                    ahead += 1
                if ahead < len(opened):
                    number = opened[ahead][0]
                    running += [] if only_decodes else opened[at:ahead]
                    at = ahead + 1
            elif segment == 0 and start > 0 and opened and opened[-1][1:] == (start, start, False):
                number = opened[-1][0]
                opened = opened[:-1]
            if number is None:
                number = self.started
                self.started += 1
            numbers.append(number)
            last = start + length
            (running if decode else prefilled).append((number, start + 1 if drafts else last, last, decode))
        running += [] if only_decodes else opened[at:]
        self.open_requests = running + prefilled
        return numbers

    def strangers(self, starts: list[int], lengths: list[int]) -> tuple[int, int]:
        """How many segments of a pass of drafts belong to no open request, and how many open requests have none."""
        trial = replace(self)
        new = sum(number >= self.started for number in trial.follow(starts, lengths, [True] * len(starts), drafts=True))
        return new, len(self.open_requests) - len(starts) + new
