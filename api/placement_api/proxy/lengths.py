"""How long answers are: read from what backends say of their own, and expected of requests that are alike."""

from __future__ import annotations

import re
from collections import OrderedDict
from hashlib import blake2b

from placement_api.proxy.asked import Asked

TAIL_BYTES = 4096  # of an answer, in which its usage is looked for: backends write it at the end
# of OpenAI's forms and SGLang's own; of OpenAI's Responses and Anthropic's. In a text of a model the quotes are escaped
USAGE = re.compile(rb'"(?:completion_tokens|output_tokens)"\s*:\s*([0-9]{1,9})(?![0-9.eE])')
MEMORY = 1000.0  # answers of a kind that count: older ones fade
WORTH = 8.0  # answers of a kind that tell as much as what is expected without them
MOST_KINDS = 20_000  # that are remembered; the one that was not seen for longest is forgotten first


class Usage:
    """Looks at an answer that passes by: the tokens that its backend counted."""

    def __init__(self) -> None:
        self._tail = b""

    def see(self, part: bytes) -> None:
        """The next part of the body."""
        self._tail = (part if len(part) >= TAIL_BYTES else self._tail + part)[-TAIL_BYTES:]

    def tokens(self) -> int | None:
        """Tokens of all answers of the request, as told last; None: nothing was told."""
        found = USAGE.findall(self._tail)
        return int(found[-1]) if found else None


class Lengths:
    """Mean tokens of an answer, by what is known beforehand; of one thread.

    The kinds of a request, each within the one before: all requests; those that allow about as many tokens; those with
    the same labels; those of the same conversation. Of each kind the mean counts beside the mean of the wider one, the
    more the more answers it has: `WORTH` of them weigh as much.
    """

    def __init__(self) -> None:
        self._known: OrderedDict[object, tuple[float, float]] = OrderedDict()  # answers, mean

    def expected(self, asked: Asked, first: float) -> float:
        """Tokens that one answer is expected to have, at most what the request allows.

        Args:
            asked: The request.
            first: What is expected while no answer was seen.
        """
        mean = first
        for kind in _kinds(asked):
            answers, own = self._known.get(kind, (0.0, 0.0))
            mean = (answers * own + WORTH * mean) / (answers + WORTH)
        return mean if asked.new_tokens is None else min(mean, asked.new_tokens)

    def learn(self, asked: Asked, tokens: int) -> None:
        """An answer is whole: `tokens` of all that the request asked for."""
        each = tokens / asked.answers
        for kind in _kinds(asked):
            answers, mean = self._known.get(kind, (0.0, 0.0))
            answers = min(answers + 1, MEMORY)
            self._known[kind] = answers, mean + (each - mean) / answers
            self._known.move_to_end(kind)
        while len(self._known) > MOST_KINDS:
            self._known.popitem(last=False)


def _kinds(asked: Asked) -> list[object]:
    """The kinds of a request, from the widest to the narrowest."""
    limit = None if asked.new_tokens is None else asked.new_tokens.bit_length()
    kinds: list[object] = [(), ("limit", limit)]
    if asked.labels:
        told = repr(sorted(asked.labels.items())).encode()  # as long as a client likes
        kinds.append(("labels", limit, blake2b(told, digest_size=16).digest()))
    if asked.session is not None:
        kinds.append(asked.session)
    return kinds
