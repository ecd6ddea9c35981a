"""Who is missing after an exchange failed: those that still run sign a list in the store, and the others are named."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import Any

from placement.errors import RankError

POLL_S = 0.02


class RollCall:
    """One list for each mesh; it is used once, since a group is of no use after a failed exchange.

    store    a torch.distributed store that all ranks reach
    grace_s  how long ranks are given to sign
    """

    def __init__(self, store: Any, rank: int, mesh: int, grace_s: float) -> None:
        self._store, self._rank, self._prefix, self._grace_s = store, rank, f"placement/{mesh}", grace_s
        self._decisions: Counter[tuple[int, ...]] = Counter()

    def error(self, ranks: tuple[int, ...], cause: str) -> RankError:
        """The error to raise in a member of the group `ranks`; takes up to the time of grace."""
        try:
            return self._named(ranks, " ".join(cause.split())[:200])
        except Exception as error:  # the store is gone as well: all of its kinds of errors mean that
            return RankError(
                f"an exchange failed ({cause}), and so did the store of rank 0, which has died: {error}", (0,)
            )

    def decide(self, ranks: tuple[int, ...], proposal: str) -> str:
        """See `Group.decide`: whoever writes first to the store has decided."""
        self._decisions[ranks] += 1
        key = f"{self._prefix}/decision/{'-'.join(map(str, ranks))}/{self._decisions[ranks]}"
        try:
            return str(self._store.compare_set(key, "", proposal).decode())
        except Exception as error:  # as above
            raise RankError(f"the store of rank 0 cannot be asked, it has died: {error}", (0,)) from error

    def _named(self, ranks: tuple[int, ...], cause: str) -> RankError:
        self._store.set(self._key("here", self._rank), "1")
        deadline = time.monotonic() + self._grace_s
        others = [rank for rank in ranks if rank != self._rank]
        while (missing := self._unsigned("here", others)) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        if missing:
            names = ", ".join(map(str, missing))
            self._store.set(self._key("missing", self._rank), names)
            return RankError(f"rank {names} died or did not come to an exchange in time ({cause})", tuple(missing))
        while time.monotonic() < deadline:  # all of this group are there: one of them may know who is not
            for rank in others:
                if not self._unsigned("missing", [rank]):
                    names = self._store.get(self._key("missing", rank)).decode()
                    with suppress(Exception):
                        self._store.set(self._key("missing", self._rank), names)
                    found = tuple(int(name) for name in names.split(","))
                    return RankError(f"rank {names} died or did not come in time, as rank {rank} found", found)
            time.sleep(POLL_S)
        return RankError(f"an exchange between ranks {', '.join(map(str, ranks))} failed: {cause}", ranks)

    def _unsigned(self, what: str, ranks: list[int]) -> list[int]:
        return [rank for rank in ranks if not self._store.check([self._key(what, rank)])]

    def _key(self, what: str, rank: int) -> str:
        return f"{self._prefix}/{what}/{rank}"
