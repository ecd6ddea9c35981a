"""What was read is kept for a while, in bounded memory, and read once however many ask for it at the same time."""

from __future__ import annotations

import asyncio
import time
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
        future: asyncio.Future[T] = self._under_way.get(key) or self.begin(key, read, keep)
        return await asyncio.shield(future)

    def begin(self, key: Hashable, read: Callable[[], T], keep: Callable[[T], None]) -> asyncio.Future[T]:
        """The same, for nobody who waits."""
        future = self._under_way[key] = asyncio.ensure_future(run_in_threadpool(read))

        def done(ended: asyncio.Future[T]) -> None:
            failed = ended.cancelled() or ended.exception() is not None
            if self._under_way.get(key) is ended:
                del self._under_way[key]
                if not failed:
                    keep(ended.result())

        future.add_done_callback(done)
        return future

    def forget(self, key: Hashable) -> None:
        """Whoever asks from now on reads anew."""
        self._under_way.pop(key, None)

    def reads(self, key: Hashable) -> bool:
        return key in self._under_way


class Fresh(Generic[T]):
    """Values that may change: each is answered for at most `sure_s` seconds after it was asked for.

    While it is in use it is read again behind the answers, so that nobody waits. None is not kept.
    """

    def __init__(self, room: int, sure_s: float) -> None:
        self.sure_s = sure_s
        self._kept: Memory[tuple[float, T]] = Memory(room)
        self._once = Once()

    def known(self, key: Hashable, read: Callable[[], T | None]) -> T | None:
        """What is sure now, if anything."""
        until, value = self._kept.get(key) or (0.0, None)
        now = time.monotonic()
        if now >= until:
            return None
        if now >= until - self.sure_s / 2 and not self._once.reads(key):
            self._once.begin(key, read, self._keeper(key))
        return value

    async def get(self, key: Hashable, read: Callable[[], T | None]) -> T | None:
        """The same, or what `read` answers now. Raises what it raises."""
        value = self.known(key, read)
        return value if value is not None else await self._once.read(key, read, self._keeper(key))

    def forget(self, key: Hashable) -> None:
        self._once.forget(key)
        self._kept.drop(key)

    def _keeper(self, key: Hashable) -> Callable[[T | None], None]:
        until = time.monotonic() + self.sure_s

        def keep(value: T | None) -> None:
            if value is None:
                self._kept.drop(key)
            else:
                self._kept.put(key, (until, value))

        return keep
