"""Sizes of steps that users give, checked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from placement.errors import OptionError

MOST_TOKENS = 1 << 24  # of a GPU in a step
ALLOWED = "whole numbers of tokens a GPU from 1 to 2^24 are allowed, with commas between them, as 16,64,256"


def parse_step_tokens(text: str) -> tuple[int, ...]:
    """The sizes in `16,64,256`. Raises OptionError."""
    for part in text.split(","):
        if not re.fullmatch(r"[0-9]{1,24}", part):
            told = repr(part[:24]) if part.strip() else "an empty place"
            raise OptionError(f"step_tokens={text[:80]!r} has {told}; {ALLOWED}")
    sizes = tuple(int(part) for part in text.split(","))
    check_step_tokens(sizes)
    return sizes


def check_step_tokens(sizes: Sequence[int]) -> None:
    """Raise OptionError unless each is a size of steps, and given once."""
    if not sizes:
        raise OptionError(f"step_tokens is empty; {ALLOWED}")
    for size in sizes:
        if not 1 <= size <= MOST_TOKENS:
            raise OptionError(f"step_tokens has {str(size)[:24]}; {ALLOWED}")
        if list(sizes).count(size) > 1:
            raise OptionError(f"step_tokens has {size} twice; give every size once")


def largest_size(tokens_of: Mapping[str, int], num_ranks: int) -> int:
    """Tokens a GPU of the largest step that is full in one of the phases."""
    return max(tokens_of.values(), default=0) // num_ranks


def check_full(sizes: Sequence[int], tokens_of: Mapping[str, int], num_ranks: int) -> None:
    """Raise OptionError where no phase has the tokens of one step."""
    most = largest_size(tokens_of, num_ranks)
    for size in sizes:
        if size > most:
            held = " and ".join(f"{count} of {phase}" for phase, count in tokens_of.items())
            allowed = f"at most {most} are allowed" if most else "a trace with more tokens is needed"
            raise OptionError(
                f"step_tokens={size} for each of {num_ranks} GPUs is a step of {size * num_ranks} tokens; the trace "
                f"has {held}, so no step is full: {allowed}"
            )
