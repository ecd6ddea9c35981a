"""Connections that have sent no whole head yet: few enough, and none of them for long."""

from __future__ import annotations

import asyncio
import resource
import time
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Protocol

SWEEP_S = 1.0
AT_ONCE, NEXT_S = 50, 0.01  # guests that are hung up on before others are answered
MOST_DESCRIPTORS = 65_536


class Guest(Protocol):
    """A connection, as the lobby knows it."""

    def hang_up(self) -> None:
        """Close it at once."""


@dataclass(slots=True, kw_only=True)
class Lobby:
    """Belongs to the event loop.

    Where the connections are as many as may be open, the next one takes the place of whoever has waited longest: so a
    health check is answered however many others open connections and say nothing.

    most    connections that may be open
    head_s  how long a connection may take to send a head, from its first moment or from the end of the last answer
    """

    most: int
    head_s: float
    _since: dict[Guest, float] = field(default_factory=dict)  # in the order of their coming
    _sweeps: bool = False

    def enter(self, guest: Guest) -> None:
        """The guest has no head from now on."""
        self._since.pop(guest, None)
        self._since[guest] = time.monotonic()
        if not self._sweeps:
            self._sweeps = True
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def leave(self, guest: Guest) -> None:
        """Its head is whole, or it is gone."""
        self._since.pop(guest, None)

    def make_room(self) -> Guest | None:
        """Hang up on who has waited longest, and say who that was; None if nobody waits."""
        guest = next(iter(self._since), None)
        if guest is not None:
            self._since.pop(guest)
            guest.hang_up()
        return guest

    def _sweep(self) -> None:
        late = time.monotonic() - self.head_s
        waiting = takewhile(lambda entry: entry[1] < late, self._since.items())
        gone = [guest for guest, _ in islice(waiting, AT_ONCE)]
        for guest in gone:
            self._since.pop(guest)
            guest.hang_up()
        self._sweeps = bool(self._since)
        if self._sweeps:
            again_s = NEXT_S if len(gone) == AT_ONCE else SWEEP_S
            asyncio.get_running_loop().call_later(again_s, self._sweep)


def most_connections(wanted: int) -> int:
    """How many connections may be open: half of the descriptors of this process, which is given all that it may have.

    The other half is for files and for connections to the database.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < more:
        resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
        soft = more
    return wanted if soft == resource.RLIM_INFINITY else min(wanted, soft // 2)
