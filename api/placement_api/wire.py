"""HTTP/1.1 as uvicorn's fastest parser reads it, with bounds that this parser does not have."""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MOST_HEAD_BYTES = 1 << 16
FRAME_BYTES = 16  # around each byte of a body that comes in the smallest of chunks


class BoundedHttp(HttpToolsProtocol):
    """Nobody makes it collect a head without end: line, headers and trailers have `MOST_HEAD_BYTES` together."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._left = MOST_HEAD_BYTES

    def data_received(self, data: bytes) -> None:
        self._left -= len(data)
        super().data_received(data)
        if self._left < 0 and not self.transport.is_closing():
            self.send_400_response(f"The head of the request is longer than {MOST_HEAD_BYTES} bytes.")

    def on_message_begin(self) -> None:
        self._left = MOST_HEAD_BYTES
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        self._left += FRAME_BYTES * len(body)
        super().on_body(body)
