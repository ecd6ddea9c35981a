"""Answers that are stored files: from memory, named by an ETag, not sent again to who has them."""

from __future__ import annotations

from fastapi import Request, Response

from placement_api.store.recent import Recent

CACHING = "private, no-cache"  # keep it, and ask each time whether it is still there


async def stored(request: Request, recent: Recent, digest: str, media_type: str) -> Response:
    """The file with that digest, packed by gzip for who asks for it; 304 where the request names its ETag."""
    packed = _takes_gzip(request.headers.get("accept-encoding", ""))
    headers = {
        "ETag": f'"{digest}.gz"' if packed else f'"{digest}"',
        "Cache-Control": CACHING,
        "Vary": "Accept-Encoding",
    }
    known = request.headers.get("if-none-match")
    if known is not None and (headers["ETag"] in known or known.strip() == "*"):
        return Response(status_code=304, headers=headers)
    content = await recent.content(digest, packed=packed)
    if packed:
        headers["Content-Encoding"] = "gzip"
    return Response(content, media_type=media_type, headers=headers)


def _takes_gzip(accepted: str) -> bool:
    codings = (one.replace(" ", "").lower().partition(";") for one in accepted.split(","))
    return any(name == "gzip" and weight not in ("q=0", "q=0.0") for name, _, weight in codings)
