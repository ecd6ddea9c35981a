"""JSON documents of a file: one a line, or one that is the whole file; a list stands for its items."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from placement.errors import TraceError
from placement.readers.base import reading

MEND = "record it again; of a file that was cut off, remove the last line"


def json_objects(path: Path, passed_over: Callable[[str, bytes], None] | None = None) -> Iterator[tuple[str, Any]]:
    """(where it is, document), line by line; only a file that is one document of many lines is read whole.

    `passed_over` is told place and bytes of each line that is empty or no JSON. Without it, empty lines are nothing and
    a line that is no JSON raises TraceError.
    """
    with reading(path, MEND), path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            where = f"{path}: line {number}"
            if not line.strip():
                if passed_over is not None:
                    passed_over(where, line)
                continue
            try:
                document = json.loads(line)
            except ValueError as error:
                if number == 1 and path.suffix == ".json":
                    try:
                        document = json.loads(line + file.read())
                    except ValueError:
                        if passed_over is None:
                            raise
                        file.seek(len(line))
                    else:
                        yield from _items(str(path), document)
                        return
                if passed_over is None:
                    raise TraceError(f"{where} is not JSON ({error}); {MEND}") from None
                passed_over(where, line)
                continue
            yield from _items(where, document)


def _items(where: str, document: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(document, list):
        for number, item in enumerate(document):
            yield f"{where}, item {number}", item
    else:
        yield where, document
