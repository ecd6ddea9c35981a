"""Answers that are stored files: named by an ETag, not sent again to who has them, packed for who asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Response
from starlette.datastructures import Headers

from placement_api.store.recent import Recent

MEDIA_TYPES = {"placement": "application/json", "report": "text/html; charset=utf-8", "grouping": "application/json"}
CACHING = "private, no-cache"  # keep it, and ask each time whether it is still there


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What to answer with the file of a digest: packed by gzip or as it is; `held` if the client has it."""

    digest: str
    media_type: str
    packed: bool
    held: bool
    etag: str

    @staticmethod
    def asked(headers: Headers, name: str, digest: str) -> Stored:
        """As the headers of a request say."""
        return Stored.of(headers.get("accept-encoding"), headers.get("if-none-match"), name, digest)

    @staticmethod
    def of(accepted: str | None, known: str | None, name: str, digest: str) -> Stored:
        """As `Accept-Encoding` and `If-None-Match` say, where they were sent."""
        packed = _takes_gzip(accepted)
        etag = f'"{digest}.gz"' if packed else f'"{digest}"'
        held = known is not None and (etag in known or known.strip() == "*")
        return Stored(digest=digest, media_type=MEDIA_TYPES[name], packed=packed, held=held, etag=etag)

    def answer(self, content: bytes) -> Response:
        headers = {"ETag": self.etag, "Cache-Control": CACHING, "Vary": "Accept-Encoding"}
        if self.held:
            return Response(status_code=304, headers=headers)
        if self.packed:
            headers["Content-Encoding"] = "gzip"
        return Response(content, media_type=self.media_type, headers=headers)

    def known_content(self, recent: Recent) -> bytes | None:
        """What to send, if it is in memory: nothing to who has it."""
        return b"" if self.held else recent.known_content(self.digest, packed=self.packed)

    async def read(self, recent: Recent) -> Response:
        """Raises InputError."""
        return self.answer(b"" if self.held else await recent.content(self.digest, packed=self.packed))


def _takes_gzip(accepted: str | None) -> bool:
    if accepted is None or "gzip" not in accepted:
        return False
    codings = (one.replace(" ", "").lower().partition(";") for one in accepted.split(","))
    return any(name == "gzip" and weight not in ("q=0", "q=0.0") for name, _, weight in codings)
