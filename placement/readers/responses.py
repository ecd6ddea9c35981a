"""What a server answered, a document a response, and what of it holds no routing: aborted, failed, empty.

A log of real traffic has all of these. They are passed over, counted and told; a file of the folder without a single
response (a configuration, a list of prompts) is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from placement.errors import TraceError
from placement.readers.base import head_of
from placement.readers.json_lines import json_objects

# what may be remarked: of one, and of several
WITHOUT = ("response without routed_experts left out", "responses without routed_experts left out")
FAILED = ("error of the server left out", "errors of the server left out")
BROKEN = ("line that is no JSON left out", "lines that are no JSON left out")
EMPTY = ("empty line left out", "empty lines left out")
ABSENT = ("token of a prompt has no row", "tokens of prompts have no rows")
UNTOLD = (
    "response does not say where its prompt ends, so all its tokens are called prefill",
    "responses do not say where their prompts end, so all their tokens are called prefill",
)
MISCOUNTED = (
    "list of ids left out: it is not as long as its response says",
    "lists of ids left out: they are not as long as their responses say",
)
DRAFTS = (
    "row beyond the tokens of its response is called a rejected draft",
    "rows beyond the tokens of their responses are called rejected drafts",
)
LAST = 2**31 - 1
MOST_HEADS, HEAD_BYTES = 32, 1 << 20


@dataclass(slots=True)
class Remarks:
    """What was remarked of responses and lines: how many times, and where first; and files that hold no response."""

    found: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)

    def add(self, what: tuple[str, str], where: str, count: int = 1) -> None:
        """Remark `what` so many times."""
        before, first = self.found.get(what, (0, where))
        if count:
            self.found[what] = (before + count, first)

    def line(self, where: str, line: bytes) -> None:
        """Remark a line that is empty or no JSON."""
        self.add(BROKEN if line.strip() else EMPTY, where)

    def notes(self) -> list[str]:
        """One line for each."""
        lines = []
        for (one, several), (count, where) in self.found.items():
            place = Path(where).name
            lines.append(f"1 {one} ({place})" if count == 1 else f"{count:,} {several} (the first: {place})")
        return lines + [f"{name} left out: it holds no responses" for name in self.files]

    def nothing_left(self, path: Path, mend: str) -> TraceError:
        """The error of a recording of which nothing is left."""
        return TraceError(f"{path} has no response with routed_experts: {', '.join(self.notes()) or 'none'}; {mend}")


def responses(
    files: list[Path], is_response: Callable[[dict[str, Any]], bool], remarks: Remarks
) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(where, a name for a response that has none, response) of every response of the server."""
    for path in files:
        others, first, answers = 0, "", False
        for number, (where, document) in enumerate(json_objects(path, remarks.line)):
            if isinstance(document, dict) and is_response(document):
                answers = True
                yield where, f"{path.stem}/{number}", document
            elif isinstance(document, dict) and _failed(document):
                answers = True
                remarks.add(FAILED, where)
            else:
                others, first = others + 1, first or where
        if others and answers:
            remarks.add(WITHOUT, first, others)
        elif others:
            remarks.files.append(path.name)


def number_in(holder: Any, key: str) -> int | None:
    """A number of tokens that a response tells, or None."""
    value = holder.get(key) if isinstance(holder, dict) else None
    return value if type(value) is int and 0 <= value <= LAST else None


def _failed(document: dict[str, Any]) -> bool:
    """The body of an HTTP error: of vLLM, of SGLang, of the frameworks below them."""
    return document.get("object") == "error" or bool(document.get("error")) or set(document) == {"detail"}


def heads_with(files: Iterable[Path], *keys: str) -> Iterator[tuple[Path, bytes]]:
    """The first of the files, and how they begin, that name one of `keys`; configurations may lie before them."""
    for path in list(files)[:MOST_HEADS]:
        head = head_of(path, HEAD_BYTES)
        if any(f'"{key}"'.encode() in head for key in keys):
            yield path, head
