"""Is anything better than ours on both figures?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """Held-out sends per token and rank imbalance, means over layers and splits."""

    sends: float
    imbalance: float


def better_on_both(peer: Point, ours: Point) -> bool:
    return peer.sends < ours.sends and peer.imbalance < ours.imbalance


def distance(peer: Point, front: Sequence[Point]) -> float:
    """0 if a point of the front is at least as good on both figures.

    Else what the nearest point lacks, relative, on the worse of its two figures.
    """
    return min(max(ours.sends / peer.sends - 1, ours.imbalance / peer.imbalance - 1, 0.0) for ours in front)


def not_beaten(points: Sequence[Point]) -> list[Point]:
    """Those that no other point beats on both figures, from the least imbalance on."""
    kept = [one for one in points if not any(better_on_both(other, one) for other in points)]
    return sorted(kept, key=lambda point: point.imbalance)
