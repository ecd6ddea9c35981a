"""SGLang's expert distribution recorder over HTTP: started, and asked for what it has before every look.

The engine writes its dumps to a folder of its own machine ($SGLANG_EXPERT_DISTRIBUTION_RECORDER_DIR), which the
follower reads. A dump empties the recorder, which goes on recording: each token is in one dump.
"""

from __future__ import annotations

import urllib.error
import urllib.request
from dataclasses import dataclass
from urllib.parse import urlsplit

from placement.errors import InputError, OptionError
from placement.support.same_origin import open_same_origin

START, DUMP, STOP = (f"/{verb}_expert_distribution_record" for verb in ("start", "dump", "stop"))
TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SGLangRecorder:
    """The recorder of an engine at `url`. Its methods raise InputError where the engine does not do as it was asked."""

    url: str

    def __post_init__(self) -> None:
        if urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc:
            raise OptionError(f"engine {self.url!r} is no address; give http://HOST:PORT of the engine's server")

    def start(self) -> None:
        self._post(START)

    def dump(self) -> None:
        """Have what was recorded since the last dump written to the engine's folder."""
        self._post(DUMP)

    def stop(self) -> None:
        self._post(STOP)

    def _post(self, path: str) -> None:
        request = urllib.request.Request(self.url.rstrip("/") + path, data=b"", method="POST")
        try:
            with open_same_origin(request, TIMEOUT_S) as answer:
                answer.read()
        except urllib.error.HTTPError as error:
            raise InputError(
                f"{self.url} answers {error.code} to POST {path}; start SGLang with "
                "--expert-distribution-recorder-mode per_token"
            ) from None
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise InputError(
                f"{self.url} does not answer POST {path}: {reason}; is the engine running there?"
            ) from None
