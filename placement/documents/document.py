"""What the JSON files of this library have in common: a schema, one way to read them, and one to write them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from placement.errors import InputError
from placement.support.atomic_files import write_atomic
from placement.support.text_files import parse_json

MOST_FAULTS = 20  # that a message names


class Readable(Protocol):
    """A path: of a file, or of an object on shared storage."""

    def read_bytes(self) -> bytes: ...


class DocumentPart(BaseModel):
    """A part of a document: no other keys, no conversions."""

    model_config = ConfigDict(extra="forbid", strict=True)


class Document(DocumentPart):
    """A file of the schema SCHEMA; what is wrong with one is an ERROR, whose message ends with MEND.

    ROWS are what `json_bytes` writes an item a line, BEFORE the older schemas that the document brings to its own.
    """

    SCHEMA: ClassVar[str]
    ERROR: ClassVar[type[InputError]] = InputError
    MEND: ClassVar[str]
    ROWS: ClassVar[tuple[str, ...]] = ()
    BEFORE: ClassVar[tuple[str, ...]] = ()

    schema_: str = Field(alias="schema")

    @classmethod
    def read(cls, path: Readable, *, absent: str | None = None) -> Self:
        """Read and check a file. Raises the document's error with what is wrong; `absent` if there is no file."""
        try:
            content = path.read_bytes()
        except OSError as error:
            if absent is not None and isinstance(error, FileNotFoundError):
                raise cls.ERROR(absent) from None
            raise cls.ERROR(f"cannot read {path}: {error.strerror}; {cls.MEND}") from None
        return cls.load(content, path)

    @classmethod
    def load(cls, content: bytes, name: object) -> Self:
        """Check the content of a file; messages call the file `name`."""
        try:
            document = parse_json(content)
        except ValueError as error:
            raise cls.ERROR(f"{name} is not JSON ({error}); {cls.MEND}") from None
        found = document.get("schema") if isinstance(document, dict) else None
        if found not in (cls.SCHEMA, *cls.BEFORE):
            raise cls.ERROR(f"{name} has schema {found!r}; {cls.SCHEMA!r} is the one that this version reads")
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            faults = fault_list(error)
            more = f"; and {len(faults) - MOST_FAULTS} more" if len(faults) > MOST_FAULTS else ""
            named = "; ".join(faults[:MOST_FAULTS])
            raise cls.ERROR(f"{name} has {len(faults)} faults: {named}{more}", faults) from None
        except InputError as error:  # of a part that checks itself
            raise cls.ERROR(f"{name}: {error}", error.faults) from None

    def document(self) -> dict[str, Any]:
        """Plain data: the keys that were given, in the order of the schema."""
        return self.model_dump(by_alias=True, exclude_unset=True)

    def write(self, path: str | Path) -> None:
        """Write the file, whole or not at all. Raises OutputError."""
        write_atomic(path, self.content())

    def content(self) -> bytes:
        """The content of the file."""
        return self.encode(self.document())

    @classmethod
    def encode(cls, document: Mapping[str, Any]) -> bytes:
        """The same of plain data."""
        return json_bytes(document, *cls.ROWS)

    @classmethod
    def json_schema(cls) -> dict[str, Any]:
        schema = cls.model_json_schema(by_alias=True)
        return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": cls.SCHEMA, **schema}


def json_bytes(document: Mapping[str, Any], *rows: str) -> bytes:
    """Indented JSON that people can read and compare.

    Args:
        rows: names of lists or objects, as "router.saved", that come last, each item of theirs on one line
    """
    return _text(document, rows, 0).encode(errors="replace") + b"\n"


def _text(value: Any, rows: tuple[str, ...], depth: int) -> str:
    line = "\n" + " " * depth
    if not rows:
        return json.dumps(value, indent=1, ensure_ascii=False).replace("\n", line)
    if "" not in rows:  # the rows are further in
        inner = {key: tuple(row[len(key) + 1 :] for row in rows if f"{row}.".startswith(f"{key}.")) for key in value}
        keys = sorted(value, key=lambda key: bool(inner[key]))
        items = [f"{json.dumps(key, ensure_ascii=False)}: {_text(value[key], inner[key], depth + 1)}" for key in keys]
    elif isinstance(value, Mapping):
        items = [f"{json.dumps(key)}: {json.dumps(one)}" for key, one in value.items()]
    else:
        return f"[{line} {f',{line} '.join(json.dumps(one, separators=(',', ':')) for one in value)}{line}]"
    return f"{{{line} {f',{line} '.join(items)}{line}}}" if items else "{}"


def fault_list(error: ValidationError) -> tuple[str, ...]:
    """What pydantic found, a sentence for each place."""
    places = (".".join(map(str, one["loc"])) or "file" for one in error.errors())
    return tuple(
        f"{place}: {one['msg'].removeprefix('Value error, ')}"
        for place, one in zip(places, error.errors(), strict=True)
    )
