"""The protocol of an exporter: a placement in, the bytes that one engine loads out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from placement.placement_map import Placement


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """The file's content, and what to tell the engine beside it (flags to set), one line each."""

    content: bytes
    hints: tuple[str, ...] = field(default=())


class Exporter(Protocol):
    name: str
    suffix: str

    def export(self, placement: Placement) -> Export:
        """Raises MapError where the engine would silently misread the map."""
