"""Who is missing after an exchange failed: those that still run sign a list in the store, and the others are named."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from placement.errors import RankError

POLL_S = 0.02
STORE_RANK = 0  # whose process has the store, unless torchrun's agent has it
MOST_WORDS = 200


class RollCall:
    """One list for each mesh; it is used once, since a group is of no use after a failed exchange.

    store    a torch.distributed store that all ranks reach
    world    how many ranks there are
    grace_s  how long ranks are given to sign
    """

    def __init__(self, store: Any, rank: int, world: int, mesh: int, grace_s: float) -> None:
        self._store, self._rank, self._world = store, rank, world
        self._prefix, self._grace_s = f"placement/{mesh}", grace_s
        self._decisions: Counter[tuple[int, ...]] = Counter()
        self._here: set[int] = set()  # who is known to have signed

    def error(self, ranks: tuple[int, ...], cause: str) -> RankError:
        """The error to raise in a member of the group `ranks`; takes up to the time of grace.

        The rank that has the store stays as long again, until all others know who is missing.
        """
        try:
            found = self._named(ranks, plain(cause))
            self._store.set(self._key("told", self._rank), "1")
        except Exception as error:  # the store is gone: all of its kinds of errors mean that
            return self._without_store(ranks, plain(cause), plain(str(error)))
        if self._rank == STORE_RANK:
            with suppress(Exception):
                self._wait_for("told", set(range(self._world)) - set(found.ranks) - {self._rank})
        return found

    def decide(self, ranks: tuple[int, ...], proposal: str) -> str:
        """See `Group.decide`: whoever writes first to the store has decided."""
        self._decisions[ranks] += 1
        key = f"{self._prefix}/decision/{'-'.join(map(str, ranks))}/{self._decisions[ranks]}"
        try:
            return str(self._store.compare_set(key, "", proposal).decode())
        except Exception as error:  # as above
            raise RankError(
                f"the store of rank {STORE_RANK} cannot be asked, it has died: {plain(str(error))}", (STORE_RANK,)
            ) from None

    def _named(self, ranks: tuple[int, ...], cause: str) -> RankError:
        self._store.set(self._key("here", self._rank), "1")
        self._here.add(self._rank)
        deadline = time.monotonic() + self._grace_s
        while time.monotonic() < deadline:  # another rank may know already
            if said := self._said_by_another():
                return said
            self._missing_of(ranks)
            time.sleep(POLL_S)
        missing = self._missing_of(ranks)
        if missing:
            names = ", ".join(map(str, missing))
            self._store.set(self._key("missing", self._rank), names)
            return RankError(f"rank {names} died or did not come to an exchange in time ({cause})", tuple(missing))
        return RankError(f"an exchange between ranks {', '.join(map(str, ranks))} failed: {cause}", ranks)

    def _said_by_another(self) -> RankError | None:
        for rank in range(self._world):
            if self._store.check([self._key("missing", rank)]):
                names = self._store.get(self._key("missing", rank)).decode()
                found = tuple(int(name) for name in names.split(","))
                return RankError(f"rank {names} died or did not come in time, as rank {rank} found", found)
        return None

    def _missing_of(self, ranks: Iterable[int]) -> list[int]:
        """Those of `ranks` that have not signed."""
        self._here |= {one for one in ranks if one not in self._here and self._store.check([self._key("here", one)])}
        return [one for one in ranks if one not in self._here]

    def _without_store(self, ranks: tuple[int, ...], cause: str, why: str) -> RankError:
        """A store that goes after its rank has signed went because that rank had found who is missing, and left."""
        missing = [one for one in ranks if one not in self._here]
        if STORE_RANK in self._here and missing:
            names = ", ".join(map(str, missing))
            return RankError(f"rank {names} died or did not come to an exchange in time ({cause})", tuple(missing))
        return RankError(
            f"an exchange failed ({cause}), and the store of rank {STORE_RANK} cannot be asked, it has died: {why}",
            (STORE_RANK,),
        )

    def _wait_for(self, what: str, ranks: set[int]) -> None:
        deadline = time.monotonic() + self._grace_s
        while ranks and time.monotonic() < deadline:
            ranks = {one for one in ranks if not self._store.check([self._key(what, one)])}
            time.sleep(POLL_S)

    def _key(self, what: str, rank: int) -> str:
        return f"{self._prefix}/{what}/{rank}"


def plain(cause: str) -> str:
    """What an error of torch says, in one line: without the C++ stack and the place in torch's source."""
    words = re.split(r"Exception raised from|C\+\+ CapturedTraceback", cause)[0]
    words = re.sub(r"\[?/?[\w./-]+\.(cc|cpp|h|hpp):\d+\]?:?", "", words)
    return " ".join(words.split())[:MOST_WORDS]
