"""Requests to a service: sent again while the service is busy, its problems raised as the errors of the library."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from placement.errors import InputError, OptionError, PlacementError, error_of_type
from placement.support.same_origin import open_same_origin

TIMEOUT_S = 60.0  # longest silence; a job sends an event at least every 15 s
BUSY = (429, 503)  # the service has done nothing, and says so
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0


class AwayError(InputError):
    """The service does not answer now, or is busy: it may answer later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpService:
    """A service at an address. The token goes to that server alone: a redirect to another is refused.

    url         without `/` at its end
    patience_s  how long a busy service is asked again, after pauses that grow or that the service names
    """

    url: str
    token: str | None
    patience_s: float

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise OptionError(f"server {self.url!r} is no address; give http://HOST:PORT or https://HOST")

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        media: str = "application/json",
        length: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> bytes:
        """The body of the answer. Raises what `open` raises."""
        with self.open(method, path, body, media, length, timeout_s) as answer:
            content: bytes = answer.read()
            return content

    @contextmanager
    def open(
        self,
        method: str,
        path: str,
        body: bytes | IO[bytes] | None = None,
        media: str = "application/json",
        length: int | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Iterator[Any]:
        """The answer, to be read.

        Args:
            method, path: What is asked.
            body: Bytes, or a file that is seekable, of `length` bytes.
            media: What the body is.
            length: Bytes of the body, where it is a file.
            timeout_s: How long the service may be silent.

        Raises:
            AwayError: Nobody answers at this address, or the service is busy for longer than `patience_s`.
            InputError: The service refuses the request.
            PlacementError: The service fails; otherwise what the library would raise, as the service words it.
        """
        headers = {"Accept": "application/json"} | ({} if body is None else {"Content-Type": media})
        if length is not None:
            headers["Content-Length"] = str(length)
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        request = urllib.request.Request(self.url + path, data=body, headers=headers, method=method)
        try:
            with self._patiently(request, timeout_s) as answer:
                yield answer
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise AwayError(f"{self.url} does not answer: {reason}; is the service running there?") from None
        except HTTPException as error:
            raise AwayError(f"{self.url} broke off amid its answer: {error!r}; ask again") from None

    def _patiently(self, request: urllib.request.Request, timeout_s: float) -> Any:
        end, pause = time.monotonic() + self.patience_s, FIRST_PAUSE_S
        while True:
            try:
                return open_same_origin(request, timeout_s)
            except urllib.error.HTTPError as error:
                wait = max(pause, _named_pause(error.headers))
                if error.code not in BUSY or time.monotonic() + wait > end:
                    raise self._worded(error) from None
                error.close()
            time.sleep(wait)
            pause = min(2 * pause, LONGEST_PAUSE_S)
            if hasattr(request.data, "seek"):
                request.data.seek(0)  # type: ignore[union-attr]

    def _worded(self, error: urllib.error.HTTPError) -> PlacementError:
        try:
            worded = error_of(json.loads(error.read()))
        except (ValueError, KeyError, TypeError):
            worded = InputError(f"{self.url} answers {error.code} and no reason; is it a placement service?")
        return AwayError(str(worded)) if error.code in BUSY else worded


def error_of(problem: dict[str, Any]) -> PlacementError:
    """The error of a problem: that of the library, if the service names one; else who is at fault."""
    known = error_of_type(problem["type"])
    message = f"{problem['detail']}; {problem['mend']}"
    return (known or (InputError if problem["status"] < 500 else PlacementError))(message)


def _named_pause(headers: HTTPMessage | Any) -> float:
    """Seconds that the service asks to wait; 0 if it names none, or a date."""
    named = str(headers.get("Retry-After", "")).strip()
    return min(float(named), LONGEST_PAUSE_S) if named.isdecimal() else 0.0
