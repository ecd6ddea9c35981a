"""Progress as events: the library reports, shells decide how to show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`done` of `total` units of a stage.

    "count" (tokens), "compile" (pieces of the kernels, where numba's cache lacks some), "solve" (layers), "robust"
    and "group" (rounds), "evaluate" (passes), "apply" (files), "advise" (maps)

    best  of "solve": the objective of the best maps found so far, mean over the layers that are done
    """

    stage: str
    done: int
    total: int
    best: float | None = None


Listener = Callable[[Progress], None]


def ignore(_: Progress) -> None:
    """The listener of those who do not listen."""
