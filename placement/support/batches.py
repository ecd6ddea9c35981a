"""Consecutive things put together until they are large enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def batches(
    items: Iterable[T], size_of: Callable[[T], int], most: int, most_items: int | None = None
) -> Iterator[tuple[T, ...]]:
    """All `items` in order, as many at a time as have a size of at most `most` together; a larger one comes alone."""
    batch: list[T] = []
    total = 0
    for item in items:
        size = size_of(item)
        if batch and (total + size > most or len(batch) == most_items):
            yield tuple(batch)
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield tuple(batch)
