"""What a conversion leaves out: how much of what, and where it was."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from placement.readers.base import Batch

UNUSED = "unused rows"


@dataclass(slots=True)
class LeftOut:
    """Rows that were left out, by what they are.

    counts  of each kind
    files   names of the files that they were in, in order
    first   rows at the beginning of each request that nobody wrote to, by the request's id
    """

    counts: dict[str, int] = field(default_factory=dict)
    files: dict[str, dict[str, None]] = field(default_factory=dict)
    first: dict[str, int] = field(default_factory=dict)

    def add(self, what: str, batch: Batch, mine_T: npt.NDArray[np.bool_]) -> None:
        """Rows of the batch that are left out for one reason, bool [T]."""
        count = int(np.count_nonzero(mine_T))
        if count:
            self.counts[what] = self.counts.get(what, 0) + count
            self.files.setdefault(what, {})[Path(batch.where.split(": ")[0]).name] = None

    def add_first(
        self, batch: Batch, unused_T: npt.NDArray[np.bool_], kept_R: npt.NDArray[np.int64], begun: Container[str]
    ) -> None:
        """Unused rows that come before any row which is kept; requests in `begun` have such rows already."""
        for local in np.unique(batch.request_T[unused_T]).tolist():
            name = batch.requests[local].id
            if name not in begun:
                mine_R = kept_R[batch.request_T[kept_R] == local]
                before_T = unused_T[: mine_R[0]] if len(mine_R) else unused_T
                of_T = batch.request_T[: len(before_T)] == local
                self.first[name] = self.first.get(name, 0) + int(np.count_nonzero(before_T & of_T))

    def notes(self, begun: Container[str] = (), requests: int = 0) -> list[str]:
        """One line for each kind, and one where rows come first in requests of which others were kept."""
        lines = []
        for what, count in self.counts.items():
            name, *others = self.files[what]
            more = f" and {len(others):,} other files" if len(others) > 1 else f" and {others[0]}" if others else ""
            lines.append(f"left out: {count:,} {what}, in {name}{more}")
        first = [count for name, count in self.first.items() if count and name in begun]
        if first:
            lines.append(
                f"{sum(first):,} unused rows are the first of {len(first):,} of {requests:,} requests: does another "
                f"replica compute the prompts, or are they cached? Record there as well"
            )
        return lines
