"""JSON documents of a file: one a line, or one that is the whole file; a list stands for its items."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from placement.errors import TraceError
from placement.readers.base import reading

MEND = "record it again; of a file that was cut off, remove the last line"


def json_objects(path: Path) -> Iterator[tuple[str, Any]]:
    """(where it is, document), line by line; only a file that is one document of many lines is read whole."""
    with reading(path, MEND), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                document = json.loads(line)
            except ValueError as error:
                if number == 1 and path.suffix == ".json":
                    yield from _items(str(path), json.loads(line + file.read()))
                    return
                raise TraceError(f"{path}: line {number} is not JSON ({error}); {MEND}") from None
            yield from _items(f"{path}: line {number}", document)


def _items(where: str, document: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(document, list):
        for number, item in enumerate(document):
            yield f"{where}, item {number}", item
    else:
        yield where, document
