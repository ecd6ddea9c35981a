"""Names of a service, from Python: versions of placements, and aliases that are moved from one to another."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, urlencode

from placement.errors import InputError, OptionError, PlacementError
from placement.support.http_service import HttpService

LONGEST_WAIT_S = 30.0  # that one request is kept back


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """`deepseek-v3/decode@production`: a name, and an alias or the number of a version."""

    name: str
    word: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises OptionError where the text is no NAME@ALIAS."""
        name, _, word = text.rpartition("@")
        if not name or not word or "/" in word:
            raise OptionError(
                f"{text[:80]!r} names no version; give NAME@ALIAS or NAME@NUMBER, as deepseek-v3@production"
            )
        return cls(name=name, word=word)

    @property
    def path(self) -> str:
        """Where the service has what it names."""
        return f"{path_of(self.name)}@{quote(self.word, safe='')}"

    def __str__(self) -> str:
        return f"{self.name}@{self.word}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What a reference names now.

    Attributes:
        name: Its name.
        number: Its number.
        sha256: Of its placement file.
        grouping_sha256: Of its file of homes; None: it has none.
        move: The last move of the alias; None: the version was named by its number.
    """

    name: str
    number: int
    sha256: str
    grouping_sha256: str | None
    move: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names of a service. Every method raises what `HttpService.open` raises."""

    service: HttpService

    def publish(
        self, name: str, *, placement: str | None = None, document: dict[str, Any] | None = None, note: str = ""
    ) -> Version:
        """Keep a placement of the service, by its id, or the document of a placement file, as the next version."""
        body = {"placement": placement, "document": document, "note": note}
        return _version(self._json("POST", path_of(name), body))

    def promote(self, where: Reference, version: int, *, expect: int | None = None, note: str = "") -> dict[str, Any]:
        """Point an alias at a version; `expect`: the one that it must have now."""
        moved: dict[str, Any] = self._json("PUT", where.path, {"version": version, "expect": expect, "note": note})
        return moved

    def roll_back(self, where: Reference, *, expect: int | None = None, note: str = "") -> dict[str, Any]:
        """Point an alias at what was promoted before."""
        moved: dict[str, Any] = self._json("POST", f"{where.path}/rollback", {"expect": expect, "note": note})
        return moved

    def look(self, where: Reference) -> Version:
        """What it names now."""
        return _version(self._json("GET", where.path))

    def next_move(self, where: Reference, after: int) -> Version:
        """What the alias names when it moves after this move, or half a minute later."""
        query = urlencode({"after": after, "wait": LONGEST_WAIT_S})
        return _version(self._json("GET", f"{where.path}?{query}", timeout_s=2 * LONGEST_WAIT_S))

    def placement(self, version: Version) -> bytes:
        """The placement file, as it was sent: compare its digest."""
        return self.service.ask("GET", f"{path_of(version.name)}@{version.number}/placement")

    def grouping(self, version: Version) -> bytes:
        """The file of homes, likewise."""
        return self.service.ask("GET", f"{path_of(version.name)}@{version.number}/grouping")

    def detail(self, name: str) -> dict[str, Any]:
        """Versions, aliases and history of a name."""
        found: dict[str, Any] = self._json("GET", path_of(name))
        return found

    def list(self) -> list[dict[str, Any]]:
        """All names, their latest versions and aliases."""
        found: list[dict[str, Any]] = self._json("GET", "/v1/names")
        return found

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None, timeout_s: float = 60.0) -> Any:
        content = None if body is None else json.dumps(body).encode()
        answer = self.service.ask(method, path, content, timeout_s=timeout_s)
        try:
            return json.loads(answer)
        except ValueError:
            raise InputError(f"{self.service.url} answers no JSON; is it a placement service?") from None


def path_of(name: str) -> str:
    """Where a service has a name."""
    return f"/v1/names/{quote(name, safe='/')}"


def _version(told: Any) -> Version:
    try:
        return Version(
            name=str(told["name"]),
            number=int(told["version"]),
            sha256=str(told["sha256"]),
            grouping_sha256=told["grouping_sha256"],
            move=told.get("move"),
        )
    except (KeyError, TypeError, ValueError):
        raise PlacementError("the service does not tell which version it has; use a service of this version") from None
