"""How much each of many may ask."""

from __future__ import annotations

import time
from collections import OrderedDict
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address

MOST_NAMES = 10_000
HOST_BITS = 64  # of an address of version 6: whoever has one has all of these


@dataclass(slots=True, kw_only=True)
class Rates:
    """`per_s` a second of each name, and as many at once. Belongs to the event loop.

    Of names only those that asked last are known: one that asks again after 10,000 others begins anew.
    """

    per_s: float
    _left: OrderedDict[str, tuple[float, float]] = field(default_factory=OrderedDict)

    def left(self, name: str) -> float:
        """What a name may still spend now; below 0 where it has spent too much."""
        left, then = self._left.get(name, (self.per_s, 0.0))
        return min(self.per_s, left + (time.monotonic() - then) * self.per_s)

    def spend(self, name: str, price: float) -> None:
        """Count a request; a price below 0 gives back."""
        self._left[name] = (self.left(name) - price, time.monotonic())
        self._left.move_to_end(name)
        if len(self._left) > MOST_NAMES:
            self._left.popitem(last=False)


def whose(address: str) -> str:
    """The name under which an address asks: of version 6, its network."""
    try:
        given = ip_address(address)
    except ValueError:
        return address
    if isinstance(given, IPv6Address):
        return str(int(given) >> HOST_BITS) if given.ipv4_mapped is None else str(given.ipv4_mapped)
    return address
