"""What was read is kept for a while, in bounded memory, and read once however many ask for it at the same time."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

from starlette.concurrency import run_in_threadpool

T = TypeVar("T")


class Memory(Generic[T]):
    """Values by key; where their sizes add up to more than `room`, those that were asked for longest ago go.

    Belongs to the event loop.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self.used = 0
        self._kept: OrderedDict[Hashable, tuple[int, T]] = OrderedDict()

    def get(self, key: Hashable) -> T | None:
        kept = self._kept.get(key)
        if kept is None:
            return None
        self._kept.move_to_end(key)
        return kept[1]

    def put(self, key: Hashable, value: T, size: int = 1) -> None:
        self.drop(key)
        if size > self.room:
            return
        self._kept[key] = (size, value)
        self.used += size
        while self.used > self.room:
            self.used -= self._kept.popitem(last=False)[1][0]

    def drop(self, key: Hashable) -> None:
        self.used -= self._kept.pop(key, (0, None))[0]


class Once:
    """Reads in threads: one for a key at a time, whose answer all get who ask for it meanwhile."""

    def __init__(self) -> None:
        self._under_way: dict[Hashable, asyncio.Future[Any]] = {}

    async def read(self, key: Hashable, read: Callable[[], T], keep: Callable[[T], None]) -> T:
        """What `read` answers, after `keep` got it; not if the key was forgotten meanwhile. Raises what it raises."""
        future: asyncio.Future[T] | None = self._under_way.get(key)
        if future is None:
            future = self._under_way[key] = asyncio.ensure_future(run_in_threadpool(read))

            def done(ended: asyncio.Future[T]) -> None:
                if self._under_way.get(key) is ended:
                    del self._under_way[key]
                    if not ended.cancelled() and ended.exception() is None:
                        keep(ended.result())

            future.add_done_callback(done)
        return await asyncio.shield(future)

    def forget(self, key: Hashable) -> None:
        """Whoever asks from now on reads anew."""
        self._under_way.pop(key, None)
