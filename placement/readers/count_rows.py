"""Counts of many passes in bounded memory: neighbours are added up when there are too many rows."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

MOST_ROWS = 512


class CountRows:
    """At most MOST_ROWS rows of counts [L, E]; each is of `width` consecutive passes, in the order they were added."""

    def __init__(self, shape: tuple[int, int]) -> None:
        self.shape = shape
        self.count = 0  # passes
        self.width = 1
        self._rows: list[npt.NDArray[np.int64]] = []
        self._pass_of: dict[int, int] = {}

    def add(self, count_LE: npt.NDArray[np.int64], key: int | None = None) -> None:
        """Add a pass; of passes with the same key, which ranks recorded, one row is the sum."""
        if key is not None and key in self._pass_of:
            self._rows[self._pass_of[key] // self.width] += count_LE
            return
        if key is not None:
            self._pass_of[key] = self.count
        if self.count == MOST_ROWS * self.width:
            pairs = zip(self._rows[::2], self._rows[1::2], strict=True)
            self._rows = [first + second for first, second in pairs]
            self.width *= 2
        if self.count % self.width:
            self._rows[-1] += count_LE
        else:
            self._rows.append(count_LE.copy())
        self.count += 1

    def array(self) -> npt.NDArray[np.int64]:
        return np.stack(self._rows) if self._rows else np.zeros((0, *self.shape), dtype=np.int64)

    def note(self, passes: str) -> str:
        """What a row is, for the user."""
        rows = f"{self.count:,} {passes}"
        if self.width > 1:
            rows = f"{len(self._rows):,} windows of {self.width} {passes}"
        return f"{rows} are the rows that can be held out: there are no requests"
