"""Documents: one reader that says what is wrong, and one writer whose rows stand on a line each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from placement.documents.document import Document, json_bytes
from placement.errors import InputError, TraceError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


class Example(Document):
    SCHEMA = "example/1"
    ERROR = TraceError
    MEND = "write the example again"

    size: int
    names: list[str] = []  # noqa: RUF012 pydantic copies defaults


@given(document=st.dictionaries(st.text(max_size=4), JSON, max_size=4), rows=st.lists(st.lists(st.integers())))
def test_rows_change_the_layout_alone(document: dict[str, Any], rows: list[list[int]]) -> None:
    """Whatever else a document says, it is read back as it was, and each row is a line of its own."""
    document = document | {"rows": rows}
    written = json_bytes(document, "rows").decode()
    assert json.loads(written) == document
    tail = written[written.rindex('"rows": [') :].splitlines()
    assert [json.loads(line.rstrip(",")) for line in tail[1:-2] if line.strip()] == rows


def test_rows_may_lie_further_in() -> None:
    """Rows come last in their object; those of an object are its keys."""
    document = {"homes": {"é": 1}, "a": [1], "router": {"saved": [[[1.5]], [[2.0]]], "band": 0.1}}
    assert json_bytes(document, "router.saved", "homes").decode().splitlines() == [
        "{",
        ' "a": [',
        "  1",
        " ],",
        ' "homes": {',
        '  "\\u00e9": 1',
        " },",
        ' "router": {',
        '  "band": 0.1,',
        '  "saved": [',
        "   [[1.5]],",
        "   [[2.0]]",
        "  ]",
        " }",
        "}",
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"{", "is not JSON .*; write the example again"),
        (b'{"schema": "example/1", "size": 1, "size": 2}', "the key 'size' twice"),
        (b"[]", "has schema None; 'example/1' is the one"),
        (b'{"schema": "example/2", "size": 1}', "has schema 'example/2'"),
        (b'{"schema": "example/1", "size": "1", "more": 2}', "has 2 faults: size: .*; more: "),
    ],
)
def test_what_is_wrong_is_said_in_one_line(content: bytes, told: str, tmp_path: Path) -> None:
    """The error is the document's own, and names the file."""
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(TraceError, match=told) as error:
        Example.read(tmp_path / "x.json")
    assert "x.json" in str(error.value) and "\n" not in str(error.value)


def test_all_faults_are_kept() -> None:
    """The message names the first ones, the error has every one."""
    names = json.dumps([1] * 30)
    with pytest.raises(InputError, match="and 10 more") as error:
        Example.load(f'{{"schema": "example/1", "size": 1, "names": {names}}}'.encode(), "x")
    assert len(error.value.faults) == 30


def test_an_absent_file(tmp_path: Path) -> None:
    """The caller may say what is missed; else the system does."""
    with pytest.raises(TraceError, match=r"No such file.*; write the example again"):
        Example.read(tmp_path / "x.json")
    with pytest.raises(TraceError, match="this is no example"):
        Example.read(tmp_path / "x.json", absent="this is no example")


def test_what_was_not_given_is_not_written(tmp_path: Path) -> None:
    """A key with a default appears where it was set, even to that default."""
    Example(schema="example/1", size=3).write(tmp_path / "x.json")
    assert json.loads((tmp_path / "x.json").read_bytes()) == {"schema": "example/1", "size": 3}
    Example(schema="example/1", size=3, names=[]).write(tmp_path / "x.json")
    assert Example.read(tmp_path / "x.json").document() == {"schema": "example/1", "size": 3, "names": []}
