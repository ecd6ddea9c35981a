"""HTTP requests that stay with the server they were meant for: a redirect carries neither token nor body elsewhere."""

from __future__ import annotations

import urllib.request
from email.message import Message
from http.client import HTTPException
from io import IOBase
from typing import IO, Any
from urllib.parse import urlsplit

from placement.errors import InputError

DEFAULT_PORTS = {"http": ":80", "https": ":443"}


def open_same_origin(request: urllib.request.Request, timeout_s: float) -> Any:
    """Send a request, and follow redirects within its origin.

    Args:
        request: What to send; a body that is a file must be seekable.
        timeout_s: How long the server may be silent.

    Returns:
        The answer, as `urllib.request.urlopen` returns it.

    Raises:
        InputError: The server redirects to another origin, would make a POST a GET, or speaks no HTTP.
        OSError: The server does not answer, or answers with an error (`urllib.error.HTTPError`).
    """
    try:
        return urllib.request.build_opener(_WithinOrigin).open(request, timeout=timeout_s)
    except OSError:
        raise
    except (HTTPException, ValueError) as error:
        raise InputError(
            f"{request.full_url} gives no HTTP answer: {error}; is that the address of the server?"
        ) from None


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL, the default port left out."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower().removesuffix(DEFAULT_PORTS.get(parts.scheme, ''))}"


class _WithinOrigin(urllib.request.HTTPRedirectHandler):
    """Sends the same request again, to the same origin alone."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> urllib.request.Request:
        method, here, there = req.get_method(), origin_of(req.full_url), origin_of(newurl)
        if there != here:
            fp.close()
            raise InputError(
                f"{here} redirects to {there}, and neither the token nor the request is sent to another server; "
                f"give {there} as the address if that is the server"
            )
        if code not in (307, 308) and method not in ("GET", "HEAD"):
            fp.close()
            raise InputError(
                f"{here} redirects a {method} with status {code}, which would make it a GET; "
                f"have the server, or the proxy before it, answer 308"
            )
        if isinstance(req.data, IOBase):
            req.data.seek(0)
        return urllib.request.Request(newurl, data=req.data, headers=req.headers, method=method)
