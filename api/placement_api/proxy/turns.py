"""One decision at a time between two looks of the event loop at its sockets."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """Belongs to the event loop.

    uvloop sends what was written when it has run all that was ready. Of requests that came together the first would
    leave only when the last is decided. With a turn for each, those decided leave and answers pass meanwhile.
    """

    def __init__(self) -> None:
        self._taken = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def next(self) -> None:
        """Wait until the loop has sent what the decision before this one wrote; in the order of asking."""
        loop = asyncio.get_running_loop()
        if self._taken:
            turn: asyncio.Future[None] = loop.create_future()
            self._waiting.append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():  # the turn came together with the end
                    self._end()
                raise
        self._taken = True
        loop.call_soon(self._end)

    def _end(self) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._taken = False
