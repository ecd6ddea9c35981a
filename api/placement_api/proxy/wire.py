"""HTTP/1.1 for clients: heads with bounds, in size and in time."""

from __future__ import annotations

import asyncio
from typing import Any

from placement_api.wire import BoundedHttp


class TimedHttp(BoundedHttp):
    """Nobody keeps a connection by sending a head slowly; subclasses say for how long one may take."""

    head_s = 10.0

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        self._expect_head()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._forget_head()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._forget_head()
        self._head = self.loop.call_later(self.head_s, self._late)

    def _forget_head(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None

    def _late(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
