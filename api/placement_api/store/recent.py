"""Placements that are asked for again and again: their files and routers, from memory."""

from __future__ import annotations

import gzip
from dataclasses import dataclass, field
from functools import partial

from placement.grouping.grouping_file import load_router
from placement.grouping.router import Router
from placement_api.memory import Fresh, Memory, Once
from placement_api.store.blobs import Blobs
from placement_api.store.database import Database
from placement_api.store.tables import DONE, JobRow

SURE_S = 1.0  # for at most so long a placement is answered that another host deleted
MOST_ROWS = 1_000
CONTENT_BYTES = 64 << 20
ROUTER_BYTES = 64 << 20


@dataclass(slots=True, kw_only=True)
class Recent:
    """Belongs to the event loop: what is known is answered at once, what is not is read in a thread.

    Contents are named by their digests and never go out of date; the rows that name them are read again every second.
    """

    database: Database
    blobs: Blobs
    _rows: Fresh[JobRow] = field(default_factory=lambda: Fresh(MOST_ROWS, SURE_S))
    _contents: Memory[bytes] = field(default_factory=lambda: Memory(CONTENT_BYTES))
    _routers: Memory[Router] = field(default_factory=lambda: Memory(ROUTER_BYTES))
    _once: Once = field(default_factory=Once)

    def known_row(self, placement: str) -> JobRow | None:
        """The row of a placement that was there less than a second ago, if it was asked for."""
        return self._rows.known(placement, partial(self._find, placement))

    async def row(self, placement: str) -> JobRow | None:
        """The same, or what the database says now; None if there is no such placement, or not yet."""
        return await self._rows.get(placement, partial(self._find, placement))

    def forget(self, placement: str) -> None:
        """It was deleted here."""
        self._rows.forget(placement)

    def _find(self, placement: str) -> JobRow | None:
        with self.database.reading() as session:
            row = session.get(JobRow, placement)
        return row if row is not None and (row.kind, row.state) == ("solve", DONE) else None

    def known_content(self, digest: str, *, packed: bool = False) -> bytes | None:
        return self._contents.get((digest, packed))

    async def content(self, digest: str, *, packed: bool = False) -> bytes:
        """A file of the blobs; `packed` by gzip. Raises InputError."""
        known = self.known_content(digest, packed=packed)
        if known is not None:
            return known

        def read() -> bytes:
            content = self.blobs.get(digest)
            return gzip.compress(content, mtime=0) if packed else content

        key = (digest, packed)
        return await self._once.read(key, read, lambda content: self._contents.put(key, content, len(content)))

    def known_router(self, digest: str) -> Router | None:
        return self._routers.get(digest)

    async def router(self, digest: str) -> Router:
        """The router of a grouping file. Raises InputError."""
        known = self.known_router(digest)
        if known is not None:
            return known
        return await self._once.read(
            (digest, "router"),
            lambda: load_router(self.blobs.path(digest)),
            lambda router: self._routers.put(digest, router, router.num_bytes),
        )
