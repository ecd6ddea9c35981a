"""How an engine is started with the file of a placement, apart from what else is to be known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from placement.exporters.engines import ENGINES

OPENINGS = ("start ", "use it with")  # of the hint of an exporter that says it, before a colon


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """command is what may be copied, with the file's name in it; empty where an exporter has none."""

    title: str
    command: str
    notes: list[str]


def engine_of(names: Sequence[str | None]) -> str | None:
    """The exporter for the first of these engines or readers of recordings that is an engine's; None if none is."""
    for name in names:
        engine = (name or "").removesuffix("-responses")
        if engine in ENGINES:
            return ENGINES[engine]
    return None


def start_of(hints: Sequence[str], file_name: str) -> Start:
    for number, hint in enumerate(hints):
        title, colon, command = hint.partition(": ")
        if colon and title.startswith(OPENINGS):
            notes = [*hints[:number], *hints[number + 1 :]]
            return Start(title=title, command=command.replace("FILE", file_name), notes=notes)
    return Start(title="", command="", notes=list(hints))
