"""Numbers that an option takes together in one short text."""

from __future__ import annotations

import re

from placement.errors import OptionError

MOST_RANKS = 1_000_000  # in a list of ranks; more are a slip


def ranks_of(text: str | None) -> tuple[int, ...]:
    """The ranks of a list such as 3,8-15, ascending. Raises OptionError."""
    ranks: set[int] = set()
    for part in [] if text is None else text.split(","):
        ends = part.split("-")
        if len(ends) > 2 or not all(end.strip().isascii() and end.strip().isdigit() for end in ends):
            raise OptionError(f"--lost-ranks {text!r} is no list of ranks; give numbers and spans, such as 5 or 3,8-15")
        first, last = int(ends[0]), int(ends[-1])
        if not first <= last <= MOST_RANKS:
            raise OptionError(f"--lost-ranks {text!r} has {part!r}; spans ascend and end at {MOST_RANKS} at most")
        ranks.update(range(first, last + 1))
    return tuple(sorted(ranks))


def moves_of(text: str | None) -> tuple[int | None, int | None]:
    """The limits of a text such as 40, 2/layer or 40,2/layer: of all layers, of each. Raises OptionError."""
    limits: dict[bool, int] = {}
    for part in [] if text is None else text.split(","):
        found = re.fullmatch(r"\s*(-?\d{1,30})\s*(/layer)?\s*", part, re.ASCII)
        if found is None or (found[2] is not None) in limits:
            raise OptionError(f"--max-moves {text!r} is no limit of moves; give N, N/layer, or both as 40,2/layer")
        limits[found[2] is not None] = int(found[1])
    return limits.get(False), limits.get(True)


def caps_of(text: str | None) -> tuple[float | None, float | None]:
    """The caps of a text such as 1.2, 1.2,1.05 or ,1.05: on GPUs, on nodes. Raises OptionError."""
    if text is None:
        return None, None
    caps = [part.strip() for part in text.split(",")]
    try:
        numbers = [float(cap) if cap else None for cap in caps]
    except ValueError:
        numbers = []
    if not 1 <= len(numbers) <= 2 or numbers[-1] is None:
        raise OptionError(
            f"--max-imbalance {text!r} is no cap; give one on GPUs, on GPUs and nodes, or on nodes alone: "
            "1.2, 1.2,1.05 or ,1.05"
        )
    return (numbers[0], numbers[1]) if len(numbers) == 2 else (numbers[0], None)
