"""Placements that are asked for again and again: their files and routers, from memory."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from placement.grouping.router import Router
from placement_api.memory import Memory, Once
from placement_api.store.blobs import Blobs
from placement_api.store.tables import JobRow

SURE_S = 1.0  # for so long a placement may be answered that another host deleted
MOST_ROWS = 10_000
CONTENT_BYTES = 128 << 20
ROUTER_BYTES = 128 << 20


@dataclass(slots=True, kw_only=True)
class Recent:
    """Belongs to the event loop: what is known is answered at once, what is not is read in a thread.

    Contents are named by their digests and never go out of date; the row that names them is looked up every second.
    """

    blobs: Blobs
    _rows: Memory[tuple[float, JobRow]] = field(default_factory=lambda: Memory(MOST_ROWS))
    _contents: Memory[bytes] = field(default_factory=lambda: Memory(CONTENT_BYTES))
    _routers: Memory[Router] = field(default_factory=lambda: Memory(ROUTER_BYTES))
    _once: Once = field(default_factory=Once)

    async def row(self, placement: str, find: Callable[[str], JobRow]) -> JobRow:
        """What `find` answered of a placement that is done less than a second ago, or answers now."""
        known = self._rows.get(placement)
        now = time.monotonic()
        if known is not None and now < known[0]:
            return known[1]
        return await self._once.read(
            placement, lambda: find(placement), lambda row: self._rows.put(placement, (now + SURE_S, row))
        )

    def forget(self, placement: str) -> None:
        """It was deleted here."""
        self._once.forget(placement)
        self._rows.drop(placement)

    async def content(self, digest: str, *, packed: bool = False) -> bytes:
        """A file of the blobs; `packed` by gzip. Raises InputError."""
        key = (digest, packed)
        known = self._contents.get(key)
        if known is not None:
            return known

        def read() -> bytes:
            content = self.blobs.get(digest)
            return gzip.compress(content, mtime=0) if packed else content

        return await self._once.read(key, read, lambda content: self._contents.put(key, content, len(content)))

    async def router(self, digest: str) -> Router:
        """The router of a grouping file. Raises InputError."""
        known = self._routers.get(digest)
        if known is not None:
            return known
        return await self._once.read(
            (digest, "router"),
            lambda: Router.load(self.blobs.path(digest)),
            lambda router: self._routers.put(digest, router, 2 * router.saved_MEN.nbytes),
        )
